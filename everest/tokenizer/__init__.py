"""LVMAE's tokenizer: network, scorer, targets, cache, report."""
