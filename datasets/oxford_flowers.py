"""Oxford Flowers 102 (Nilsback and Zisserman, 2008)."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    name, folder, images = "oxford_flowers", "oxford_flowers", "jpg"
    split, split_id = "split_zhou_OxfordFlowers.json", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"
    split_sha256 = "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794"
    sizes = Sizes(classes=102, train=4_093, val=1_633, test=2_463)
    template = "a photo of a {}, a type of flower."
