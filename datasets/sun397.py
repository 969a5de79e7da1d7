"""SUN397 (Xiao et al., 2010): scenes."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    name, folder, images = "sun397", "sun397", "SUN397"
    split, split_id = "split_zhou_SUN397.json", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"
    split_sha256 = "9847f9ef611008073ac42adee6614bbb83f877cfbcfbd3115fc8284e0c8c1c47"
    sizes = Sizes(classes=397, train=15_880, val=3_970, test=19_850)
    how_to_get = "`python -m p2c data download {} --mirror` downloads what is missing"  # its own server has gone
