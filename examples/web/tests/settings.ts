/** The content of a bridge.json of one call. */
export const SETTINGS = {
  format: "bbdm onnx",
  version: 3,
  bridge: { kind: "abridge" },
  solver: "dpm2m",
  timesteps: [9],
  prediction: [[0, 1, 1]],
  coefficients: [[0, 0, 1, 0, 0]],
  channels: 3,
  image_channels: 3,
  stride: 8,
  latent_stride: 1,
  files: { "unet.onnx": "ab", "step.onnx": "cd" },
};
