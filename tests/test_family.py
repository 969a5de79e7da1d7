"""CoOp, CoCoOp, VPT, IVLP and PromptSRC: their published quirks; losses and gradients are the oracle's."""
