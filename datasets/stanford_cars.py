"""Stanford Cars (Krause et al., 2013): makes, models, years. The split's paths begin with cars_train/ or cars_test/."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    name, folder, images = "stanford_cars", "stanford_cars", ""
    split, split_id = "split_zhou_StanfordCars.json", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"
    split_sha256 = "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d"
    sizes = Sizes(classes=196, train=6_509, val=1_635, test=8_041)
    how_to_get = "`python -m p2c data download {} --mirror` downloads what is missing"  # its own server has gone
