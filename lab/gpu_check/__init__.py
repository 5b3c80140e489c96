"""A check of a machine with a real GPU, without Kubernetes: the driver's answers, and how our processes read them.

`python -m lab.gpu_check --out FILE` needs the checkout, Python and nvidia-ml-py, downloads nothing and changes no
setting of a GPU. It writes a report in Markdown with the differences between this machine and the fake driver's
personality of its model: each of them is a wrong line in `lab/fake_driver/personalities`, or a finding about the
machine.
"""
