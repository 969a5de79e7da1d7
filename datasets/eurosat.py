"""EuroSAT (Helber et al., 2019): land use and land cover, seen from a satellite."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    name, folder, images = "eurosat", "eurosat", "2750"
    split, split_id = "split_zhou_EuroSAT.json", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"
    split_sha256 = "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2"
    sizes = Sizes(classes=10, train=13_500, val=5_400, test=8_100)
    template = "a centered satellite photo of {}."
