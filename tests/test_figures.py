from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_dualcl.figures import PALETTE, overlay_figure, save_figure, slices_with_most_foreground

NAMES = {1: "liver", 2: "spleen"}
SPACING = (2.5, 1.0, 0.8)


def image_and_labels() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).normal(size=(10, 20, 30))
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[4:7, 5:12, 8:20] = 1
    labels[5, 12:15, 8:20] = 2
    return image, labels


def draw(**segmentations: np.ndarray) -> Figure:
    image = image_and_labels()[0]
    return overlay_figure(image, segmentations, label_names=NAMES, spacing_mm=SPACING, title="case_7")


def contours(panel: object) -> list[ContourSet]:
    return [child for child in panel.get_children() if isinstance(child, ContourSet)]  # type: ignore[attr-defined]


def test_slices_go_through_most_foreground() -> None:
    labels = image_and_labels()[1]
    labels[:, 6, 9] = 2
    assert slices_with_most_foreground(labels) == (5, 6, 9)


def test_slices_are_in_the_middle_where_nothing_is_segmented() -> None:
    assert slices_with_most_foreground(np.zeros((10, 20, 30), dtype=np.uint8)) == (5, 10, 15)


def test_columns_title_and_legend() -> None:
    labels = image_and_labels()[1]
    figure = draw(reference=labels, stock=labels, DualCL=labels)
    assert len(figure.axes) == 9
    assert [panel.get_title() for panel in figure.axes[:3]] == ["reference", "stock", "DualCL"]
    assert figure.get_suptitle() == "case_7"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["liver", "spleen"]


def test_panels_show_the_slices_of_the_first_segmentation() -> None:
    image, labels = image_and_labels()
    elsewhere = np.roll(labels, 3, axis=0)
    figure = draw(reference=labels, moved=elsewhere)
    for column in (0, 1):
        axial, coronal, sagittal = (figure.axes[row * 2 + column].images[0].get_array() for row in range(3))
        np.testing.assert_array_equal(axial, image[5])
        np.testing.assert_array_equal(coronal, image[:, 5])
        np.testing.assert_array_equal(sagittal, image[:, :, 8])
    assert len(contours(figure.axes[0])) == 2
    assert len(contours(figure.axes[1])) == 0  # nothing of the moved one is left in this slice


def test_a_millimeter_is_the_same_length_everywhere() -> None:
    figure = draw(reference=image_and_labels()[1])
    figure.draw_without_rendering()
    corners = [np.reshape(panel.images[0].get_extent(), (2, 2)) for panel in figure.axes]
    np.testing.assert_allclose([np.ptp(corner, axis=1) for corner in corners], [(24, 20), (24, 25), (20, 25)])
    upward = [panel.get_ylim()[1] > panel.get_ylim()[0] for panel in figure.axes]
    assert upward == [False, True, True]  # anterior and superior are up
    lengths = []
    for panel in figure.axes:
        box = panel.get_window_extent()
        lengths += [box.width / np.ptp(panel.get_xlim()), box.height / np.ptp(panel.get_ylim())]
    np.testing.assert_allclose(lengths, lengths[0], rtol=0.03)


def test_contours_run_around_the_voxels_in_millimeters() -> None:
    figure = draw(reference=image_and_labels()[1])
    liver = contours(figure.axes[0])[0]
    assert not liver.filled
    assert to_hex(liver.get_edgecolor()[0]).upper() == PALETTE[0]
    corners = liver.get_paths()[0].get_extents()
    # columns 8 to 19 of 0.8 mm and rows 5 to 11 of 1 mm
    np.testing.assert_allclose([corners.x0, corners.x1], [6.4, 16.0])
    np.testing.assert_allclose([corners.y0, corners.y1], [5.0, 12.0])


def test_a_class_at_the_rim_is_closed_around() -> None:
    labels = np.ones((10, 20, 30), dtype=np.uint8)
    corners = contours(draw(reference=labels).axes[0])[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([corners.x0, corners.x1, corners.y0, corners.y1], [0, 24, 0, 20], atol=1e-12)


def test_background_is_not_drawn_and_may_be_named() -> None:
    image, labels = image_and_labels()
    names = {0: "background", **NAMES}
    figure = overlay_figure(image, {"a": labels}, label_names=names, spacing_mm=SPACING, title="")
    assert len(contours(figure.axes[0])) == 2
    assert len(figure.legends[0].get_texts()) == 2


def test_many_classes_all_look_different() -> None:
    image = np.zeros((10, 20, 30))
    labels = np.zeros(image.shape, dtype=np.uint8)
    names = {label: str(label) for label in range(1, 10)}
    legend = overlay_figure(image, {"a": labels}, label_names=names, spacing_mm=SPACING, title="").legends[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == 9


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    labels = image_and_labels()[1]
    for name in ("a.png", "b.png"):
        save_figure(draw(reference=labels), tmp_path / name, dots_per_inch=50)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in (tmp_path / "a.png").read_bytes()
    assert imread(tmp_path / "a.png").std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


def test_only_png_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end the name in \.png, got a\.pdf"):
        save_figure(Figure(), tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("segmentations", "names", "message"),
    [
        ({}, NAMES, "At least one segmentation"),
        ({"a": np.zeros((10, 20, 31))}, NAMES, r"'a' has shape \(10, 20, 31\), but .* \(10, 20, 30\)"),
        ({"a": image_and_labels()[1]}, {1: "liver"}, r"'a' has labels \[2\], which label_names does not"),
    ],
)
def test_what_cannot_be_drawn(segmentations: dict[str, np.ndarray], names: dict[int, str], message: str) -> None:
    image = image_and_labels()[0]
    with pytest.raises(ValueError, match=message):
        overlay_figure(image, segmentations, label_names=names, spacing_mm=SPACING, title="")


def test_a_flat_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3D image.*\(20, 30\)"):
        overlay_figure(np.zeros((20, 30)), {}, label_names=NAMES, spacing_mm=SPACING, title="")
