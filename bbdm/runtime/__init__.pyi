from bbdm.runtime.sampler import OnnxBridgeSampler as OnnxBridgeSampler
