"""Mixed precision, in one place for training and testing."""
from contextlib import nullcontext

import torch


def autocast(args, device: torch.device):
    """The context that --amp and --amp_dtype ask for; one that does nothing without --amp."""
    if not args.amp:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if args.amp_dtype == "bf16" else torch.float16)
