"""Getting the data sets: from an archive somewhere to folders as CoOp lays them out, and whether these are right.

`sources` says where each data set comes from; `fetch` gets one file and `extract` unpacks one archive, both whole or not
at all; `places` moves things without losing any; `install` joins them for one data set; `verify` looks at the result.
"""
