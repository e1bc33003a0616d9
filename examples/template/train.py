import hydra
import torch
from hydra.utils import instantiate
from parts import Trainer


@hydra.main(
    version_base="1.3", config_path="conf", config_name="train", execution_whitelist=["parts.*", "torch.optim.*"]
)
def main(cfg):
    torch.manual_seed(cfg.seed)
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values()]
    loggers = [instantiate(node) for node in (cfg.logger or {}).values()]
    data.setup()
    return Trainer(callbacks, loggers, cfg.trainer.max_epochs).fit(model, data)[cfg.optimized_metric]


if __name__ == "__main__":
    main()
