"""Download, unpack and verify the datasets, in CoOp's folder layout.

`sources` lists where each dataset comes from. `fetch` downloads one file and `extract` unpacks one archive, each
completely or not at all. `places` moves files without overwriting any, and `contents` checks what a folder holds.
`install` combines these for one dataset; `verify` checks the result.
"""
