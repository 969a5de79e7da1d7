"""Food-101 (Bossard et al., 2014): dishes."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    name, folder, images = "food101", "food-101", "images"
    split, split_id = "split_zhou_Food101.json", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"
    split_sha256 = "7c3d456c4f348255e1a363e0ea5118318936488f3ec20d83758e0ee67cb9037c"
    sizes = Sizes(classes=101, train=50_500, val=20_200, test=30_300)
    template = "a photo of {}, a type of food."
