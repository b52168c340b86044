"""What a budget buys on a GPU: arithmetic only, no torch, no SGLang."""
