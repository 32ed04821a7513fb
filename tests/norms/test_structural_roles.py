"""Roles in the structures that transformers have beside plain blocks, on the least of each; and on
the architectures that have them."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

import normswap as ns
from tests.effort import ALL
from tests.zoo.architectures import build
from tests.zoo.truth import RoleTable

D = 8


class _Attention(nn.Module):
    def __init__(self, width: int = D, out: int = D) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return y


class _Mlp(nn.Sequential):
    def __init__(self, width: int = D, out: int = D) -> None:
        super().__init__(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, out))


class _Block(nn.Module):
    """x + attention(a(x)), then x + MLP(b(x))."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = _Attention(width, width), _Mlp(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.a(x))
        y: Tensor = x + self.mlp(self.b(x))
        return y


class _Base(nn.Module):
    """A block, the structure in question, another block, and a final norm with a head."""

    def __init__(self, behind: int = D) -> None:
        super().__init__()
        self.first, self.last = _Block(), _Block(behind)
        self.norm, self.head = nn.LayerNorm(behind), nn.Linear(behind, 3)
        self.n, self.m = nn.LayerNorm(D), nn.LayerNorm(D)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.last(self.middle(self.first(tokens)))).mean(1))
        return y


class _ProjectedSkip(_Base):
    """Hiera, MViTv2: where the width changes, the skip is a projection of what is normalised."""

    def __init__(self) -> None:
        super().__init__(12)
        self.wider, self.attention = nn.Linear(D, 12), _Attention(D, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = self.n(x)
        z: Tensor = self.wider(y) + self.attention(y)
        return z


class _PooledSkip(_Base):
    """MaxViT: the skip is pooled and projected, the branch starts from what it starts from."""

    def __init__(self) -> None:
        super().__init__(12)
        self.wider, self.mlp = nn.Linear(D, 12), _Mlp(D, 12)

    def middle(self, x: Tensor) -> Tensor:
        skip = nn.functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        z: Tensor = self.wider(skip) + self.mlp(self.n(x)[:, ::2])
        return z


class _ScaledSkip(_Base):
    """CaFormer: the skip is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(), _Mlp()
        self.s, self.t = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def middle(self, x: Tensor) -> Tensor:
        x = self.s * x + self.attention(self.n(x))
        y: Tensor = self.t * x + self.mlp(self.m(x))
        return y


class _ClassAttention(_Base):
    """CaiT: the class token attends to itself and the others."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.attention, self.mlp = nn.Parameter(torch.rand(D)), _Attention(), _Mlp()

    def middle(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], 1, D)
        both = self.n(torch.cat([token, x], 1))
        token = token + self.attention(both)[:, :1]
        token = token + self.mlp(self.m(token))
        return torch.cat([token, x], 1)


class _PooledBranch(_Base):
    """PoolFormer: tokens are mixed by a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = _Mlp()

    def middle(self, x: Tensor) -> Tensor:
        y = self.n(x)
        pooled = nn.functional.avg_pool2d(y[:, None], (3, 1), 1, (1, 0))[:, 0]
        x = x + (pooled - y)
        z: Tensor = x + self.mlp(self.m(x))
        return z


class _SideBySide(_Base):
    """GPT-NeoX, Cohere: attention and MLP read the same stream, one sum after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(), _Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(tokens)
        y: Tensor = self.head(self.norm(x + self.attention(self.n(x)) + self.mlp(self.m(x))))
        return y


class _OtherStream(_Base):
    """TNT, CrossViT: one stream is normalised, projected and added to another."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.proj = _Block(), nn.Linear(D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        other = self.other(tokens.flip(1))
        x = self.first(tokens) + self.m(self.proj(self.n(other)))
        y: Tensor = self.head(self.norm(self.last(x)))
        return y


class _LongSkip(_Base):
    """Swin2SR: all that is between the embedding's norm and the last one is skipped at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(self.last(self.first(self.n(self.body(x)))))
        z: Tensor = self.head(x + self.out(y))
        return z


class _MaskedEmbedding(_Base):
    """DeBERTa: padding is zeroed behind the embedding's norm."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.n(tokens) * (tokens[..., :1] > 0).to(tokens.dtype)
        y: Tensor = self.head(self.norm(self.last(self.m(x) + self.first(x))))
        return y


class _HeadWithNorm(_Base):
    """CaFormer's head: a norm of the pooled tokens, and another one in an MLP behind it."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.n(self.first(tokens).mean(1))
        y: Tensor = self.head(self.m(torch.relu(self.last.mlp(x))))
        return y


class _Decoder(_Base):
    """What an encoder ends with is read by a decoder's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.cross = nn.Parameter(torch.rand(4, D)), _Attention()

    def forward(self, tokens: Tensor) -> Tensor:
        memory = self.n(self.first(tokens))
        q = self.queries.expand(tokens.shape[0], 4, D)
        q = q + self.cross(torch.cat([self.m(q), memory], 1))[:, :4]
        y: Tensor = self.head(self.norm(self.last(q)))
        return y


class _Dense(nn.Module):
    """DenseNet: no residual sums; each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.LayerNorm(D), nn.LayerNorm(D + 4), nn.LayerNorm(D + 8)
        self.one, self.two, self.head = nn.Linear(D, 4), nn.Linear(D + 4, 4), nn.Linear(D + 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.one(torch.relu(self.a(x)))], -1)
        x = torch.cat([x, self.two(torch.relu(self.b(x)))], -1)
        y: Tensor = self.head(torch.relu(self.c(x)).mean(1))
        return y


PLAIN = {"first.a": "pre_attention", "first.b": "pre_mlp", "norm": "final"}
BLOCKS = {**PLAIN, "last.a": "pre_attention", "last.b": "pre_mlp"}
STRUCTURES: dict[type[nn.Module], dict[str, str]] = {
    _ProjectedSkip: {**BLOCKS, "n": "pre_attention"},
    _PooledSkip: {**BLOCKS, "n": "pre_mlp"},
    _ScaledSkip: {**BLOCKS, "n": "pre_attention", "m": "pre_mlp"},
    _ClassAttention: {**BLOCKS, "n": "pre_attention", "m": "pre_mlp"},
    _PooledBranch: {**BLOCKS, "n": "pre_mlp", "m": "pre_mlp"},
    _SideBySide: {**PLAIN, "n": "pre_attention", "m": "pre_mlp"},
    _OtherStream: {**BLOCKS, "n": "other", "m": "other"},
    _LongSkip: {**BLOCKS, "n": "embedding"},
    _MaskedEmbedding: {**BLOCKS, "n": "embedding"},
    _HeadWithNorm: {
        "first.a": "pre_attention", "first.b": "pre_mlp", "n": "final", "m": "other",
    },
    _Decoder: {**BLOCKS, "n": "other", "m": "pre_attention"},
}  # fmt: skip


class _All(nn.Module):
    """All structures, so that they are captured once."""

    def __init__(self) -> None:
        super().__init__()
        for structure in STRUCTURES:
            self.add_module(structure.__name__, structure())

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(structure(tokens) for structure in self.children())


def _roles(module: nn.Module) -> dict[str, str]:
    model = ns.load(module.eval(), example_inputs=torch.randn(2, 6, D))
    return {site.name: site.role for site in ns.locate(model)}


@pytest.fixture(scope="module")
def roles() -> dict[str, str]:
    return _roles(_All())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_norms_are_called_by_what_reads_and_writes_them(
    structure: type[nn.Module], roles: dict[str, str]
) -> None:
    wanted = STRUCTURES[structure]
    assert {name: roles[f"{structure.__name__}.{name}"] for name in wanted} == wanted


def test_norms_without_any_residual_sum() -> None:
    assert _roles(_Dense()) == {"a": "other", "b": "other", "c": "final"}


# -- the architectures that have them --------------------------------------------------------------

# Globs on module paths with the role; every norm matches one, and the first that matches holds.
ARCHITECTURES: dict[str, RoleTable] = {
    "timm cait_xxs24_224": (
        ("*.norm1", "pre_attention"), ("*.norm2", "pre_mlp"), ("norm", "final"),
    ),
    "timm hiera_tiny_224": (
        ("*.norm1", "pre_attention"), ("*.norm2", "pre_mlp"), ("head.norm", "final"),
    ),
    "timm mvitv2_tiny": (
        ("patch_embed.norm", "embedding"), ("*.norm1", "pre_attention"), ("*.norm2", "pre_mlp"),
        ("*.norm_[qk]", "query_key"), ("*.norm_v", "*"), ("norm", "final"),
    ),
    "timm tnt_s_legacy_patch16_224": (
        ("*.norm1_proj", "other"), ("*.norm2_proj", "other"), ("norm?_proj", "*"),
        ("*.norm_in", "pre_attention"), ("*.norm_mlp_in", "pre_mlp"),
        ("*.norm_out", "pre_attention"), ("*.norm_mlp", "pre_mlp"), ("norm", "final"),
    ),
    "timm crossvit_tiny_240": (
        ("*.fusion.*.norm1", "pre_attention"), ("*projs.*", "other"),
        ("*.norm1", "pre_attention"), ("*.norm2", "pre_mlp"), ("norm.*", "final"),
    ),
    "timm poolformer_s12": (("head.norm", "final"), ("*", "pre_mlp")),
    "timm caformer_s18": (
        ("head.norm", "final"), ("*.downsample.norm", "downsample"), ("head.fc.norm", "other"),
        ("stages.[01].*.norm1", "pre_mlp"), ("*.norm1", "pre_attention"), ("*.norm2", "pre_mlp"),
        ("stem.norm", "embedding"),
    ),
    "timm densenet121": (("features.norm5", "final"), ("*", "other")),
    "timm resnetv2_50x1_bit": (
        ("norm", "final"), ("*.norm1", "pre_mlp"), ("*.norm[23]", "other"),
    ),
    "timm maxvit_pico_rw_256": (
        ("norm", "final"), ("*.attn_*.norm1", "pre_attention"), ("*.attn_*.norm2", "pre_mlp"),
        ("*.pre_norm", "pre_mlp"), ("*", "other"),
    ),
    "timm repvit_m0_9": (("head.*", "final"), ("*.bn", "[!f]*")),
    "hf HieraModel": (
        ("*.layernorm_before", "pre_attention"), ("*.layernorm_after", "pre_mlp"),
        ("model.pooler.layernorm", "final"),
    ),
    "hf Swin2SRModel": (
        ("*.patch_embeddings.layernorm", "embedding"), ("*_before", "post_attention"),
        ("*_after", "post_mlp"), ("model.layernorm", "final"),
    ),
    "hf DebertaModel": (
        ("*.embeddings.LayerNorm", "embedding"), ("*.attention.*", "post_attention"),
        ("*", "post_mlp"),
    ),
    "hf GroupViTModel": (
        ("*.embeddings.layernorm", "embedding"), ("*.layer_norm1", "pre_attention"),
        ("*.layer_norm2", "pre_mlp"), ("*_model.layernorm", "final"),
        ("*.final_layer_norm", "final"), ("*", "[!f]*"),
    ),
    "hf Mask2FormerModel": (
        ("*.swin.embeddings.norm", "embedding"), ("*.downsample.norm", "downsample"),
        ("*.layernorm_before", "pre_attention"), ("*.layernorm_after", "pre_mlp"),
        ("*.hidden_states_norms.*", "other"), ("*.swin.layernorm", "other"),
        ("*.transformer_module.decoder.layernorm*", "*"), ("*", "[!f]*"),
    ),
}  # fmt: skip
QUICK = ("timm cait_xxs24_224",)  # several seconds each


@pytest.mark.parametrize("name", ARCHITECTURES if ALL else QUICK)
def test_roles_in_an_architecture(name: str) -> None:
    built = build(name)
    model = ns.load(built.module, example_inputs=built.inputs)
    wrong = {}
    for site in ns.locate(model):
        glob = next(role for path, role in ARCHITECTURES[name] if fnmatchcase(site.name, path))
        if not fnmatchcase(site.role, glob):
            wrong[site.name] = f"{site.role}, not {glob}"
    assert not wrong
