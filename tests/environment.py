"""The environment of the tests and of every process they start, without what users set for our commands.

Importing this makes it so; it comes before anything of ours, which reads some of the variables when it is imported.
"""
import os

OURS = {"DATA", "OUTPUT", "CFG", "SEEDS", "SOURCE", "PYTHON", "P2C_ENGINE", "P2C_FAULT", "SIGNALS"}
TORCHRUNS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
KEPT = {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"}  # they say which hardware to use, and how
PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
SHELLS = {"BASH_ENV", "CDPATH"}  # they change what a script of ours does
REAL_DATA = "P2C_TEST_DATA"  # where $DATA was, for the tests that look there for files they cannot make

if data := os.environ.get("DATA"):
    os.environ[REAL_DATA] = data
for name in list(os.environ):
    if name in OURS | TORCHRUNS | SHELLS or name.startswith("XDG_") or name.lower() in PROXIES:
        del os.environ[name]
