"""What is peculiar to CoOp, CoCoOp, VPT, IVLP and PromptSRC: published quirks, and losses and gradients as the oracle's."""
