"""The paper's own ideas as plain mathematics: annealed prompt noise (DPD) and the denoising mapper. Imports nothing of ours."""
