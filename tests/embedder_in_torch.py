"""The emotion embedder as somebody with PyTorch would write it for the exported file: torch.nn's layers and names."""

import math

import torch
from torch import nn


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.q_proj, self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
    self.out_proj = nn.Linear(width, width, bias=False)

  def forward(self, x, memory):
    b, n, width = x.shape
    q, k, v = (
      project(y).reshape(b, -1, self.heads, width // self.heads).transpose(1, 2)
      for project, y in ((self.q_proj, x), (self.k_proj, memory), (self.v_proj, memory))
    )
    attended = nn.functional.scaled_dot_product_attention(q, k, v)
    return self.out_proj(attended.transpose(1, 2).reshape(b, n, width))


class Layer(nn.Module):
  def __init__(self, width, heads, mlp):
    super().__init__()
    self.self_attn = Attention(width, heads)
    self.linear1, self.linear2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
    self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)

  def forward(self, x):
    x = self.norm1(x + self.self_attn(x, x))
    return self.norm2(x + self.linear2(self.linear1(x).relu()))


class Encoder(nn.Module):
  def __init__(self, inputs, width, layers, heads, mlp):
    super().__init__()
    self.absent = nn.Parameter(torch.zeros(width))
    self.proj_in = nn.Linear(inputs, width)
    self.layers = nn.ModuleList(Layer(width, heads, mlp) for _ in range(layers))

  def forward(self, x):
    x = self.proj_in(x)
    n, width = x.shape[1:]
    rate = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angle = torch.arange(n)[:, None] * rate
    x = x + torch.stack([angle.sin(), angle.cos()], -1).reshape(n, width)
    for layer in self.layers:
      x = layer(x)
    return x


class Embedder(nn.Module):
  """With both modalities and no frame masked; config: as DICE-Talk/emotion_embedder.json."""

  def __init__(self, config):
    super().__init__()
    width, heads, sizes = config["features"], config["num_heads"], (config["num_layers"], config["num_heads"])
    self.audio = Encoder(config["speech_features"], width, *sizes, config["mlp"])
    self.visual = Encoder(config["expression_features"], width, *sizes, config["mlp"])
    self.fusion = nn.ModuleList(Attention(width, heads) for _ in range(config["num_fusion_layers"]))
    self.w_s = nn.Parameter(torch.zeros(width))
    self.fusion_scale = config["fusion_scale"]

  def forward(self, expression, speech):
    s_alpha, s_beta = self.audio(speech), self.visual(expression)
    for layer in self.fusion:
      s_alpha = s_alpha + self.fusion_scale * layer(s_alpha, s_beta)
    weight = (s_alpha @ self.w_s).softmax(-1)[..., None]
    mu = (weight * s_alpha).sum(1)
    return mu, (weight * (s_alpha - mu[:, None]).square()).sum(1).sqrt()
