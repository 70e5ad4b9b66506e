"""Compare ways of training on the same few labeled cases: run the jobs, then report what they found.

Needs the extra: ``pip install "nnunet-dualcl[benchmark]"``.
"""
