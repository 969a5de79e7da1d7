"""What is peculiar to CoOp, CoCoOp, VPT, IVLP and PromptSRC: published quirks; losses and gradients are the oracle's."""
