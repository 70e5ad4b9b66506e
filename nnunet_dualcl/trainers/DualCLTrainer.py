"""The trainer that nnU-Net finds by ``-tr DualCLTrainer``."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_dualcl.atomic import alone, remove_leftovers, replacing
from nnunet_dualcl.config import DualCLConfig, Preset
from nnunet_dualcl.data.cases import raw_training_images, read_split
from nnunet_dualcl.data.paired_loader import PairedLoader, augment, build_unlabeled_loader, patches_of
from nnunet_dualcl.data.plans import preprocess_command
from nnunet_dualcl.data.random_stream import seed_epoch, seed_global_streams
from nnunet_dualcl.data.splits import check_patients
from nnunet_dualcl.data.unlabeled_dataset import UnlabeledDataset
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import CONFIG_FILE, CONFIG_VARIABLE, TRAINING_LOCK_FILE, folder_if_set
from nnunet_dualcl.model_folder import read_checkpoint, refuse_other_meaning
from nnunet_dualcl.networks import DualDecoderUNet, check_layout
from nnunet_dualcl.preprocessing import ensure_unlabeled
from nnunet_dualcl.training import SemiSupervisedLoss, TermLog
from nnunet_dualcl.training.environment import variable
from nnunet_dualcl.training.gradients import keeping_gradients
from nnunet_dualcl.training.mixing import copy_paste
from nnunet_dualcl.training.preflight import (
    check_shares,
    check_split,
    check_supported,
    check_unseen,
    check_validation_folder,
)
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.pseudo_labels import PseudoLabels
from nnunet_dualcl.training.ranks import of_rank_0
from nnunet_dualcl.training.teacher import MovingAverageTeacher

_JUDGE_EVERY = 25
"""Steps between two looks of the teacher at labeled patches, for the accuracy in the log."""

_SKIPPED_AT_MOST = 10
"""Steps in a row whose loss may overflow in half precision; the gradient scaler skips them, as in nnU-Net."""

_LATEST_SECONDS = 15 * 60
"""Age of checkpoint_latest from which on it is saved at the next end of an epoch; nnU-Net saves it by epochs alone."""

_NNUNET_FIELDS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr")


class DualCLTrainer(nnUNetTrainer):
    """Semi-supervised training with two decoders; see ``docs/method.md`` for the terms.

    Reads its :class:`DualCLConfig` from the file named by ``DUALCL_CONFIG`` (``dualcl train --config`` sets it).
    Overrides call nnU-Net's own method; a test compares their signatures with nnU-Net's.
    """

    preset: ClassVar[Preset] = "dualcl"
    """Values that hold where the configuration file is silent."""
    config_class: ClassVar[type[DualCLConfig]] = DualCLConfig
    loss_class: ClassVar[type[SemiSupervisedLoss]] = SemiSupervisedLoss

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ) -> None:
        config = self.config_class.from_environment(
            preset=self.preset
        )  # a fault in it shows before nnU-Net makes a folder
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._apply(config)
        self.term_log = TermLog()
        self.unlabeled_keys: list[str] = []
        self.seen: set[str] = set()  # cases of this training so far, unlabeled ones too
        self._skipped = 0

    def _apply(self, config: DualCLConfig) -> None:
        self.config = config
        for name in _NNUNET_FIELDS:
            setattr(self, name, getattr(config, name))

    # ---- network and loss

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network with a second decoder; also called at inference."""
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return DualDecoderUNet(unet)

    def initialize(self) -> None:
        """As nnU-Net's, from the configured seed and with the configured use of decoder B."""
        check_supported(self.is_cascaded, self.configuration_name, self.device)
        # a subclass may have set numbers of its own, as nnU-Net's variants do: what is stored must say so
        self.config = replace(self.config, **{name: getattr(self, name) for name in _NNUNET_FIELDS})
        seed_global_streams(self.config.seed)
        super().initialize()
        network = self.dual_network
        network.second_decoder = self.config.second_decoder
        network.prediction = self.config.prediction
        network.decoder_checkpointing = self.config.decoder_checkpointing
        self.teacher = None
        if self.config.uses_teacher:
            self.teacher = MovingAverageTeacher(network, self.config.teacher_decay, compiled=self._do_i_compile())

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's; it comes between network and DDP, which waits for a gradient of whatever is not frozen by then."""
        self.dual_network.beside.requires_grad_(self.config.second_decoder)
        result: tuple[Any, Any] = super().configure_optimizers()
        return result

    @property
    def dual_network(self) -> DualDecoderUNet:
        """The network under the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        network = network._orig_mod if isinstance(network, OptimizedModule) else network
        assert isinstance(network, DualDecoderUNet)
        return network

    def _build_loss(self) -> SemiSupervisedLoss:
        loss = self.loss_class(
            super()._build_loss(),
            self.config,
            problems=Problems(
                self.label_manager.num_segmentation_heads,
                regions=self.label_manager.has_regions,
                has_ignore=self.label_manager.has_ignore_label,
            ),
            total_steps=self.num_epochs * self.num_iterations_per_epoch,
            batch_dice=self.configuration_manager.batch_dice,
            distributed=self.is_ddp,
            compiled=self._do_i_compile() and not self.is_ddp,
        )
        return loss.to(self.device)  # its prototypes

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """For both decoders; nnU-Net's own touches decoder A only."""
        self.dual_network.set_deep_supervision(enabled)

    # ---- data

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's, without mirror axes where the configuration says so."""
        rotation, dummy_2d, initial_patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.config.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, axes

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders, the training one paired with unlabeled patches; workers seeded."""
        split_batch = self.config.split_batch and len(self.unlabeled_keys) > 0
        unlabeled_batch_size = (
            self._half_batch() if split_batch else self.config.unlabeled_batch_size or self.batch_size
        )
        seed = self._seed_epoch()
        with variable("nnUNet_n_proc_DA", "0"):  # nnU-Net builds loaders and transforms, without workers
            train, validation = super().get_dataloaders()
        loader = train.data_loader
        if split_batch:  # validation goes on with the plans' batch, as stock nnU-Net's
            loader.batch_size -= unlabeled_batch_size
            # nnU-Net forces a fixed part of a batch onto foreground, of a single patch none, and in a distributed
            # training a part that it reckoned for the whole batch: then by chance, its own option
            if loader.batch_size == 1 or self.is_ddp:
                loader.get_do_oversample = loader._probabilistic_oversampling
        labeled = loader._data.identifiers
        held_out = validation.data_loader._data.identifiers
        self._check_validation(labeled, held_out)  # nnU-Net may have just drawn them
        raw = folder_if_set("nnUNet_raw") / Path(self.preprocessed_dataset_folder_base).name
        check_patients(self.unlabeled_keys, [{"train": labeled, "val": held_out}], raw)
        if self.unlabeled_keys:
            cases = UnlabeledDataset(self.unlabeled_folder, self.unlabeled_keys)
            two_views = self.config.uses_teacher and self.config.teacher_view == "weak"
            unlabeled = build_unlabeled_loader(
                loader, cases, unlabeled_batch_size, self.label_manager, two_views=two_views
            )
            loader = PairedLoader(loader, unlabeled)
        self._note_cases({*labeled, *self.unlabeled_keys})
        workers = get_allowed_n_proc_DA()
        pin_memory = self.device.type == "cuda"
        train = augment(
            loader, num_processes=workers, num_cached=max(6, workers // 2), seed=seed, pin_memory=pin_memory
        )
        validation = augment(
            validation.data_loader,
            num_processes=0 if workers == 0 else max(1, workers // 2),
            num_cached=max(3, workers // 4),
            seed=seed + workers,
            pin_memory=pin_memory,
        )
        if workers > 0:
            next(train), next(validation)  # start the workers now, so that a fault in them shows before training
        return train, validation

    def _note_cases(self, cases: set[str]) -> None:
        """Cases of this training from now on, with a note where a continued one began with others."""
        new, gone = sorted(cases - self.seen), sorted(self.seen - cases)
        if self.seen and (new or gone):
            what = ((new, "new"), (gone, "no longer there"))
            parts = [f"{len(names)} {how} ({first_few(names)})" for names, how in what if names]
            self.print_to_log_file(f"This training goes on with other cases than it has seen: {', '.join(parts)}.")
        self.seen |= cases

    def _seed_epoch(self) -> int:
        """Seed the global generators for the current epoch; the seed."""
        return seed_epoch(self.config.seed, self.current_epoch, self.local_rank)

    def _half_batch(self) -> int:
        """How many patches of the plans' batch of this process are unlabeled with ``split_batch``."""
        whole: int = self.batch_size
        if whole < 2:
            raise DualCLError(
                f"split_batch: true needs a batch of at least 2, configuration {self.configuration_name} has "
                f"{whole} on each device. Set split_batch: false and low_memory: true."
            )
        return whole // 2

    # ---- training

    def run_training(self) -> None:
        """As nnU-Net's; the worker processes end also after an exception or an interrupt."""
        finished = (Path(self.output_folder) / "checkpoint_final.pth").is_file()
        if self.was_initialized and self.current_epoch >= self.num_epochs and finished:
            self.print_to_log_file(f"Training is already finished ({self.num_epochs} epochs).")
            return
        try:
            with self._alone_in_fold():
                self._refuse_a_later_end()
                super().run_training()
                if self.is_ddp:
                    dist.barrier()  # rank 0 writes the checkpoints, and --val_best reads one on every rank
        finally:
            for augmenter in (self.dataloader_train, self.dataloader_val):
                if hasattr(augmenter, "_finish"):
                    augmenter._finish()

    def _alone_in_fold(self) -> AbstractContextManager[object]:
        """Two trainings of one fold would overwrite each other's checkpoints."""
        if self.local_rank != 0:
            return nullcontext()
        return alone(
            Path(self.output_folder) / TRAINING_LOCK_FILE,
            f"Another process is training in {self.output_folder}. Wait for it, or end it and go on with --c.",
        )

    def _refuse_a_later_end(self) -> None:
        final = Path(self.output_folder) / "checkpoint_final.pth"
        if 0 < self.current_epoch < self.num_epochs and final.is_file():
            raise DualCLError(
                f"{final} appeared since this training was loaded: another process has finished it. Repeat the command "
                "with --val."
            )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, of cases that this training never saw, into a folder that holds predictions of no other ones."""
        self._check_validation(*self.do_split())
        super().perform_actual_validation(save_probabilities)

    def _check_validation(self, train: Sequence[str], validation: Sequence[str]) -> None:
        check_unseen(self.seen, set(validation) - set(train), self.fold)  # fold all validates on its training cases
        folder = Path(self.output_folder) / "validation"
        check_validation_folder(folder, validation, self.dataset_json["file_ending"])

    def on_train_start(self) -> None:
        """Check the split and prepare the unlabeled cases before anything long starts."""
        check_supported(self.is_cascaded, self.configuration_name, self.device)
        if self.is_ddp:
            plans = self.configuration_manager
            check_shares(plans.batch_size, dist.get_world_size(), batch_dice=plans.batch_dice)
        base = Path(self.preprocessed_dataset_folder_base)
        for note in check_split(
            base,
            Path(self.preprocessed_dataset_folder),
            self.fold,
            raw=list(raw_training_images(folder_if_set("nnUNet_raw") / base.name, self.dataset_json)),
            preprocess=preprocess_command(base.name, self.plans_manager.plans_name, self.configuration_name),
        ):
            self.print_to_log_file(note)
        if (split := read_split(base, self.fold)) is not None:
            self._check_validation(split["train"], split["val"])
        if self.config.uses_unlabeled:
            prepare = partial(
                ensure_unlabeled,
                self.plans_manager.plans,
                self.configuration_name,
                self.dataset_json,
                base,
                self.fold,
                num_processes=default_num_processes,
                required=not self.label_manager.has_ignore_label,  # else unannotated voxels are unlabeled data
            )
            self.unlabeled_folder, self.unlabeled_keys = of_rank_0(self.local_rank if self.is_ddp else None, prepare)
            self.print_to_log_file(f"{len(self.unlabeled_keys)} unlabeled cases from {self.unlabeled_folder}")
        super().on_train_start()
        self.loss.num_halves = 2 if self.unlabeled_keys else 1
        if self.teacher is not None and self.current_epoch == 0:
            self.teacher.update(self.dual_network, 0)  # the student may have got pretrained weights
        if self.local_rank == 0:
            self.config.write_yaml(Path(self.output_folder) / CONFIG_FILE)
        self.print_to_log_file(f"DualCL configuration: {self.config.to_mapping()}", add_timestamp=False)
        self._saved_latest = time.monotonic()

    def on_train_epoch_start(self) -> None:
        """Count the steps of the epoch; without workers, draw as a training that is continued at this epoch does."""
        super().on_train_epoch_start()
        self._iteration = 0
        if isinstance(self.dataloader_train, SingleThreadedAugmenter):
            self._seed_epoch()
            if isinstance(self.dataloader_train.data_loader, PairedLoader):
                self.dataloader_train.data_loader.restart()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step on the labeled and the unlabeled patches together."""
        step = self.current_epoch * self.num_iterations_per_epoch + self._iteration
        self.loss.step = step
        target = self._on_device(batch["target"])
        labeled, unlabeled = self._halves(batch, target)
        result = self._step(labeled, unlabeled, target)
        if self.teacher is not None:
            self.teacher.update(self.dual_network, step)
        self._iteration += 1
        self._stop_if_not_finite(result["loss"], batch)
        if self.loss.last_values is not None:
            result["terms"] = self.loss.last_values.cpu().numpy()
            result["weights"] = np.array([self.loss.weights[name] for name in self.loss.terms])
        return result

    def _step(self, labeled: torch.Tensor, unlabeled: torch.Tensor | None, target: Any) -> dict[str, Any]:
        result: dict[str, Any]
        if unlabeled is None or not self.config.low_memory:
            data = labeled if unlabeled is None else torch.cat((labeled, unlabeled))
            result = super().train_step({"data": data, "target": target})
            return result
        self.optimizer.zero_grad(set_to_none=True)
        first = self._labeled_gradients(labeled, target)
        with keeping_gradients(self.optimizer):
            result = super().train_step({"data": unlabeled, "target": []})
        result["loss"] = result["loss"] + first.cpu().numpy()
        return result

    def _labeled_gradients(self, labeled: torch.Tensor, target: Any) -> torch.Tensor:
        """Forward and backward pass of the labeled half alone; its loss."""
        later = self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()
        with later:
            with self._autocast():
                loss: torch.Tensor = self.loss(self.network(labeled), target)
            (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[object]:
        """As in nnU-Net's own step."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _on_device(self, tensors: Any) -> Any:
        """A tensor, or those of a list, copied to the device once for the teacher, the mixing and the loss."""
        if isinstance(tensors, list):
            return [self._on_device(tensor) for tensor in tensors]
        return tensors.to(self.device, non_blocking=True)

    def _halves(self, batch: dict[str, Any], target: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both halves of the batch as the decoders see them; what the teacher says of them goes to the loss."""
        labeled, unlabeled, weak = patches_of(batch, self._on_device(batch["data"]))
        if self.teacher is None:
            return labeled, unlabeled
        judge = self._iteration % _JUDGE_EVERY == 0 or self.loss.problems.has_ignore
        self.loss.taught_labeled = self.teacher_labels(labeled) if judge else None
        if unlabeled is None:
            return labeled, None
        taught = self.teacher_labels(unlabeled if weak is None else weak)
        if self.config.mixing == "copy_paste":
            unlabeled, taught = copy_paste(
                unlabeled,
                taught,
                labeled,
                self._known_labels(target),
                fraction=self.config.mixing_fraction,
                generator=np.random.default_rng([self.config.seed, self.local_rank, self.loss.step]),
            )
        self.loss.taught = taught
        return labeled, unlabeled

    def _known_labels(self, target: Any) -> PseudoLabels:
        """Labels of the labeled half: the truth, and the teacher's where nobody annotated."""
        truth = self.loss.problems.truth(target[0] if isinstance(target, list) else target)
        known = truth >= 0
        if not self.loss.problems.has_ignore:
            return PseudoLabels(truth, known)
        taught = self.loss.taught_labeled
        return PseudoLabels(torch.where(known, truth, taught.labels), known | taught.reliable)

    def teacher_labels(self, images: torch.Tensor) -> PseudoLabels:
        """Labels (B, P, *) of (B, channels, *) images, for P problems, and where to trust them; methods differ here.

        Called at each step on unlabeled patches, before they are mixed, in the view that ``teacher_view`` says; and at
        every 25th step of an epoch (with an ignore label at each) on labeled ones, for the accuracy in the log.
        """
        return cast(PseudoLabels, self.loss.taught_labels(self.teacher_logits(images)))

    def teacher_logits(self, images: torch.Tensor) -> torch.Tensor:
        """The teacher's logits (B, heads, *) of (B, channels, *) images, the mean of its decoders, without gradient."""
        assert self.teacher is not None
        with self._autocast():
            return self.teacher.logits(images)

    def _stop_if_not_finite(self, loss: np.ndarray, batch: dict[str, Any]) -> None:
        self._skipped = 0 if np.isfinite(loss) else self._skipped + 1
        if self._skipped <= (0 if self.grad_scaler is None else _SKIPPED_AT_MOST):
            return
        labeled, unlabeled, _ = patches_of(batch)
        seen = list(zip(batch["keys"], labeled, strict=True))
        if unlabeled is not None:  # as loaded, not as mixed: a pasted voxel would blame the case it came to
            seen += zip(batch["unlabeled_keys"], unlabeled, strict=True)
        keys = [str(key) for key, _ in seen]
        broken = [str(key) for key, image in seen if not torch.isfinite(image).all()]
        culprit = f"non-finite voxels in {', '.join(broken)}" if broken else f"cases {', '.join(keys)}"
        raise DualCLError(
            f"The loss became {float(loss)} in epoch {self.current_epoch}, step {self._iteration}: {culprit}. "
            f"Checkpoints already in {self.output_folder} were left as they are; look at these cases, lower "
            "initial_lr if they are sound, and continue with --c."
        )

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's, then the terms of this epoch to table, picture and W&B."""
        super().on_train_epoch_end(train_outputs)
        if self.loss.last_values is None or self.local_rank != 0:
            return
        outputs = collate_outputs(train_outputs)
        terms = np.ma.masked_where(np.isnan(outputs["terms"]), outputs["terms"]).mean(0).filled(np.nan)
        values = dict(zip(self.loss.terms + self.loss.observations, terms, strict=True))
        weights = dict(zip(self.loss.terms, outputs["weights"].mean(0), strict=True))
        row = self.term_log.add(self.current_epoch, float(np.mean(outputs["loss"])), values, weights)
        self.term_log.write(Path(self.output_folder), last=self.current_epoch == self.num_epochs - 1)
        for logger in self.logger.loggers:
            for name in row:
                logger.log(f"dualcl/{name}", row[name], self.current_epoch)
        summary = ", ".join(f"{name} {value:.4f}" for name, value in values.items() if not np.isnan(value))
        self.print_to_log_file(f"dualcl: {summary}")

    # ---- checkpoints

    def on_epoch_end(self) -> None:
        """nnU-Net's; ``checkpoint_latest`` is saved by the clock, too, or a job with a time limit may never get on."""
        every: int = self.save_every  # type: ignore[has-type]
        if time.monotonic() - self._saved_latest >= _LATEST_SECONDS:
            self.save_every = 1
        try:
            super().on_epoch_end()
        finally:
            self.save_every = every

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with this package's state under ``dualcl``; replaced in one step."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        whole = io.BytesIO()  # in memory, so that the disk gets it once
        super().save_checkpoint(whole)  # type: ignore[arg-type]
        whole.seek(0)
        checkpoint = torch.load(whole, map_location="cpu", weights_only=False)
        checkpoint["dualcl"] = {
            "config": self.config.to_mapping(),
            "objective": {name: getattr(self.loss, name).cpu() for name in ("prototypes", "present")},
            "seen": sorted(self.seen),
            "term_log": self.term_log.rows,
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }
        remove_leftovers(Path(filename))
        with replacing(Path(filename), durable=True) as unfinished:
            torch.save(checkpoint, unfinished)
        if Path(filename).name == "checkpoint_latest.pth":
            self._saved_latest = time.monotonic()

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue with the configuration stored in the checkpoint, whatever ``DUALCL_CONFIG`` says now."""
        checkpoint = read_checkpoint(Path(filename_or_checkpoint))
        own = checkpoint.get("dualcl")
        if own is None or checkpoint["trainer_name"] != type(self).__name__:
            raise DualCLError(
                f"{filename_or_checkpoint} was written by {checkpoint['trainer_name']}, not by {type(self).__name__}. "
                f"Name the trainer with -tr {checkpoint['trainer_name']}, or move this folder away to train anew."
            )
        plans_file = Path(self.preprocessed_dataset_folder_base) / f"{self.plans_manager.plans_name}.json"
        refuse_other_meaning(
            checkpoint, self.plans_manager.plans, self.dataset_json, Path(filename_or_checkpoint), plans_file
        )
        check_layout(checkpoint["network_weights"], filename_or_checkpoint)
        stored = self.config_class.from_mapping(own["config"], source=str(filename_or_checkpoint))
        asked, kept = self.config.to_mapping(), stored.to_mapping()
        different = [f"{name} {asked[name]} (stored: {kept[name]})" for name in kept if asked[name] != kept[name]]
        if different and self.was_initialized:
            raise DualCLError(
                f"Network and loss of this trainer were built for another configuration than that of "
                f"{filename_or_checkpoint}: {', '.join(different)}. Load it into a new trainer, before initialize()."
            )
        if different and os.environ.get(CONFIG_VARIABLE):
            self.print_to_log_file(
                f"{os.environ[CONFIG_VARIABLE]}, with what {type(self).__name__} has for the rest, says "
                f"{', '.join(different)}. A training that goes on keeps the stored configuration; to train with "
                "another one, move its output folder away."
            )
        self._apply(stored)
        super().load_checkpoint(filename_or_checkpoint)
        self.loss.load_state(own["objective"])
        if self.teacher is not None:
            self.teacher.load_state_dict(own["teacher"])
        self.term_log.rows = list(own["term_log"])
        self.seen = set(own.get("seen", ()))  # a checkpoint of an earlier release does not say
