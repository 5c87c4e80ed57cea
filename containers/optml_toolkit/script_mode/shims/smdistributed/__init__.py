"""Stands in for AWS's closed smdistributed library, so that scripts written for it run: see dataparallel.torch.torch_smddp."""
