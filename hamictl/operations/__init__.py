"""The operations of `hamictl ops`: one module an operation, and what they share.

`rollouts`, `backup_file` and `restore_plan` are pure; `installed` reads the installation; `writing` has dry runs,
confirmations and progress.
"""
