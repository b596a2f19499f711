"""What several test files use."""

# options of train.main for a network that trains within a second
TINY = {"size": 32, "batch_size": 4, "set_": ["ngf=4", "ndf=4", "log_every=1", "samples=2"], "device": "cpu"}
