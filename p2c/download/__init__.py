"""Getting the data sets: from archives somewhere to folders as CoOp lays them out, and whether these are right.

`sources` says where each data set comes from. `fetch` gets one file and `extract` unpacks one archive, both whole or
not at all; `places` moves things without losing any; `contents` tells whether a folder holds what it should; `install`
joins them for one data set, and `verify` looks at the result.
"""
