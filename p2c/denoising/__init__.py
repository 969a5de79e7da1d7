"""The paper's ideas as mathematics: annealed prompt noise (DPD) and the denoising mapper. Imports nothing of ours."""
