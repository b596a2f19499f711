"""The embedded `demo` data set: scenes as in a picture book, and their ink sketches, drawn by code.

    colour, sketch = draw(index=7, size=128)     # two uint8 (128, 128, 3) images of the same scene

Shapes are drawn from far to near: filled on a colour layer, outlined on a white one. Colours are computed in
OKLab (Source: B. Ottosson, 2020) under one light per scene. They can be told from texture and context.
"""

import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache, lru_cache
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

VERSION = 2  # raise it when any image changes: cached images and rendered results then become invalid
SCENES = 900  # images in the set
SEED = 1873  # of the whole set
INK, PALE_INK = 30, 150  # gray levels of outlines and of surface patterns in the sketch
# columns: from OKLab to the cube roots of LMS, and from LMS to linear RGB
LMS = np.array([[1, 1, 1], [0.39634, -0.10556, -0.08948], [0.2158, -0.06385, -1.29149]], np.float32)
RADIAL = Image.radial_gradient("L")  # 0 in the middle, 255 at the edge
RGB = np.array([[4.07674, -1.26844, -0.0042], [-3.30771, 2.60976, -0.70342], [0.23097, -0.34132, 1.70761]], np.float32)


def table(text: str) -> dict[str, list[str]]:
    """Parse `name field field ...; name ...`. If `@` stands before each name, fields may contain `;`."""
    rows = text.split("@")[1:] if "@" in text else text.split(";")
    return {name: fields for name, *fields in map(str.split, rows)}


# material: OKLab in hundredths, and its texture
MATERIALS = table("""grass 64 -10 11 blades; hay 76 0 14 furrow; snow 93 -1 -3 fine; leaf 50 -11 9 leaf;
rust 64 11 13 flake; blossom 80 13 -1 petal; needle 45 -9 3 blades; bark 42 5 6 plank; birch 88 0 3 birch;
rock 55 3 -8 crag; water 58 -8 -9 wave; sand 80 2 10 fine; brick 55 12 8 brick; plank 52 5 9 plank; plaster
86 0 8 fine; tile 58 14 11 tile; slate 48 0 -9 slate; thatch 72 1 13 blades; glass 62 -6 -6 fine; lamp 90 1
16 fine; moon 96 -1 3 fine; cloud 94 -1 -2 fine; streak 74 13 3 fine; skin 78 6 8 fine; stripe 60 18 8
stripe; dots 50 -2 -16 dots; cloth 55 -12 5 fine; white 95 0 2 fine; dark 27 2 -3 fine; gold 82 1 17 petal;
poppy 60 20 10 petal; tulip 66 19 -3 petal; bell 55 6 -16 petal; ginger 56 10 11 blades; umber 52 6 7 fine""")
NOISE = table("""fine 8 8 5 1; blades 110 22 40 1; leaf 40 40 50 1; flake 26 26 35 3; petal 34 34 30 2;
crag 14 18 40 3; wave 9 60 45 1; furrow 4 50 30 2""")  # texture: cells across, cells down, gain, hardness
# time: OKLab of zenith and horizon, gains of lightness and chroma, share; sun or moon, glow, clouds, windows
LIGHTS = table("""day 66 -5 -13 90 -5 -3 100 100 44 lamp moon cloud glass; cloudy 70 -5 -9 90 -4 -3 88 90 10
moon moon cloud glass; mist 80 -8 -3 94 1 7 95 85 8 lamp moon cloud glass; sunset 42 8 -11 80 6 14 74 100 22
lamp lamp streak lamp; night 22 1 -10 45 -4 -11 56 85 16 moon moon cloud lamp""")
# season: field, crown, second field; width, height, number of a crown's dots, which show the season in gray
SEASONS = table("""summer grass leaf hay 42 16 60; autumn hay rust grass 16 42 60; spring grass blossom hay
14 14 150; winter snow snow snow 30 20 60""")
# style: brightness at the centre, and its change towards the sun, upwards, and with the squared radius
SHADES = table("side 128 60 45 0; round 165 75 80 -55; land 190 25 95 0; sky 190 0 -210 0")
SIZES = table("house 60; boat 70; sheep 30; fence 50; mushroom 35; birds 20; balloon 60")  # others: 100
HOUSES = table("brick slate cloth; plaster tile poppy; plank thatch dots; white tile bell")
WEARS = table("stripe gold; dots white; cloth white")  # clothes: collar; above, wall: roof, door
# layers from far to near: material, height of the upper edge, roughness, haze; number and size of the objects
FAMILIES = table("""@hills rock 64 9 60 0 0; rock 58 8 45 0 0; land 50 4 35 300 20 house tree tree; land 36 5
20 300 28 house tree tree; land 16 4 0 300 38 house tree fence sheep; land 2 2 0 500 16 flower @lake rock 68
14 55 0 0; land 48 3 35 700 20 conifer tree conifer house; water 44 0 10 100 20 boat; land 12 6 0 400 50 tree
conifer fence flower @sea rock 46 5 50 100 30 tower house palm; water 44 0 0 250 30 boat; sand 16 5 0 200 55
palm @village rock 60 9 50 0 0; land 50 5 40 600 26 house tree; land 30 3 20 500 46 house house tree; sand 14
2 0 300 30 tree fence flower @forest rock 60 8 50 0 0; land 48 3 50 900 45 tree; land 32 4 25 400 70 tree;
land 14 4 0 400 90 tree mushroom mushroom @garden rock 60 8 50 0 0; land 46 5 35 300 25 house tree; land 26 4
10 400 30 flower sheep fence; land 6 3 0 600 50 flower @portrait rock 50 10 50 0 0; land 34 6 30 400 30 tree
house; land -6 0 0 100 100 bust""")
# Parts: material (~ rounds corners, * adds scallops, | adds a mirrored copy, ^ joins a half with its mirror
# image, :lightness) and outline in hundredths: x y ..., or an ellipse's x y rx ry; a name alone is an object.
DRAWINGS = table("""@conifer ^bark 4 0 4 30; ^needle 0 10 6 15 13 10 20 15 28 12 0 50; ^needle:2 0 30 5 35 10
30 16 35 22 31 0 70; ^needle:4 0 52 5 57 10 52 16 56 0 88; ^needle:6 0 74 5 78 11 75 0 102; frost 0 102 6 84 2
88 -5 82; frost 3 76 13 58 5 65 -2 58 -9 64; frost 4 54 19 36 6 43 -4 37 -12 43; frost 5 34 25 14 10 23 0 16
-12 22 @palm ~bark -4 0 5 0 5 40 13 80 8 84 -2 45; ~leaf:-5 10 80 30 84 44 50 26 72; ~leaf:-5 10 80 -10 86 -26
52 -6 74; ~leaf 10 80 30 102 56 68 30 86; ~leaf 10 80 -10 105 -40 74 -10 90; ~leaf:5 10 80 20 115 40 100 18
92; ~leaf:5 10 80 0 115 -18 106 2 92 @house brick 70 40 70 93 80 93 80 40; wall:-5 44 0 100 0 100 45 44 45;
wall:5 0 0 44 0 44 45 22 80 0 45; roof 22 80 94 80 106 40 50 40; roof:-10 22 80 22 70 -8 33 -8 41; door 13 0
31 0 31 28 22 33 13 28; light 55 16 67 16 67 33 55 33; light 78 16 90 16 90 33 78 33; ~light 16 42 28 42 28 60
16 60 @boat ^bark 2 10 2 120; white 4 115 20 70 50 30 4 25; stripe -4 105 -38 32 -4 25; plank -55 20 62 20 42
-4 -42 -4 @tower ^white 12 0 8 75; ^poppy 11 14 10 30; ^poppy 9 46 8 62; ^lamp 5 75 5 88; ^poppy 0 100 8 88
@balloon ^plank 7 0 8 12; ^~poppy 0 16 36 50 42 80 20 105; ^~gold 0 16 22 50 26 85 12 106; ^~poppy 0 16 8 50 9
90 0 106 @sheep |dark 12 0 18 0 18 20 12 20; *white 0 35 34 20; dark 36 42 10 12 @fence ^plank 50 10 50 16;
^plank 50 26 50 32; |plank 40 0 46 0 46 40 43 45 40 40; |plank 20 0 26 0 26 40 23 45 20 40; ^plank 3 0 3 40 0
45 @mushroom ^~white 12 0 8 60; ^~poppy 50 45 40 85 0 105; |white 22 62 8 8; white 0 80 8 8 @tulip stem;
^~tulip 0 66 20 76 20 112 8 96 0 114 @poppy stem; |~poppy:-5 0 85 28 72 36 100 10 114; ^~poppy:5 0 90 26 68 0
58; ^~poppy 0 88 20 120; ^~dark 8 80 8 94 @gold stem; ^gold 0 120 8 105 20 112 16 98 30 95 17 86 22 73 8 78 0
65; ^~bark 13 80 13 105 @bell stem; |~bell:-6 0 50 16 48 12 62; |~bell 0 62 14 60 10 74; |~bell:4 0 74 12 72 8
86; ^~bell:8 0 105 7 84 @bust style; ^skin:-10 7 15 7 36; ^~wear 42 -20 40 16 20 25 7 24 0 18; |collar 0 16 8
25 14 22 7 10; |skin:-4 19 48 4 6; ^~skin 0 24 11 26 18 38 19 56 12 70; |white:10 9 49 4.6 3.4; |leaf 8.6 49
2.8 3; |dark:-20 8.6 49 1.5 1.8; |white:30 9.6 50 0.8 0.8; |hair:-10 4 56 9 58 14 55 9 56; ~skin:-10 -2 40 2
40 1 46; ^~poppy 0 34 7 35 3 30; fringe @ginger ^~hair 10 30 24 10 27 60 18 80 @bark ^~hair 10 76 14 90 0 96;
^~hair 20 40 23 70 10 82 @thatch ^~hair 21 45 24 70 10 82; |~hair 19 46 30 50 36 30 28 12 22 30 @dark ^~hair
26 40 36 62 26 84 0 92 @fringe ~hair:5 -22 48 -19 62 -8 70 8 58 20 62 22 48 24 68 14 83 -14 83 -24 68 @cloud
*cloud -60 -6 45 20; *cloud 60 -8 45 18; *cloud:4 0 0 62 34 @streak ~cloud -100 0 -30 13 20 5 100 3 40 -10
@cap ^~stripe 25 62 22 84 0 96; ^~gold 26 58 26 68; *white 0 92 7 7 @birds ^~dark 0 0 20 16 50 10 20 24 0 5
@stem ^needle 2 0 2 80; |~leaf 0 0 16 10 36 50 12 32 @broad ^bark 5 0 2 60; *crown:-6 -14 60 17 17; *crown:-2
15 58 17 16; *crown 0 78 18 17; *crown:4 2 64 16 14 @birch ^birch 4 0 2 75; *crown:-6 -9 56 12 16; *crown:-2
10 64 12 15; *crown 0 82 13 15; *crown:4 -5 72 10 12 @poplar ^bark 4 0 2 40; *crown 0 60 12 36 @disc lamp 0 0
100 100""")


def to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert OKLab (..., 3) to sRGB uint8; colours outside the gamut are clipped."""
    lms = lab.astype(np.float32) @ LMS
    linear = (lms * lms * lms @ RGB).clip(0, 1)
    return (255 * (1.055 * linear ** (1 / 2.4) - 0.055).clip(0, 1) + 0.5).astype(np.uint8)


def curve(p: np.ndarray) -> np.ndarray:
    """Round the corners of a closed polygon (M, 2): three rounds of Chaikin's corner cutting."""
    for _ in range(3):
        p = (p[:, None] + [[0.25], [0.75]] * (np.roll(p, -1, 0) - p)[:, None]).reshape(-1, 2)
    return p


def ellipse(x: float, y: float, rx: float, ry: float, scallop: float) -> np.ndarray:
    """Return an ellipse as a polygon (72, 2), with scallops on its outline."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)[:, None]
    return np.hstack([np.cos(t), np.sin(t)]) * (1 + scallop * np.abs(np.sin(4.5 * t))) * (rx, ry) + (x, y)


@lru_cache(maxsize=4)
def textures(px: int) -> dict[str, np.ndarray]:
    """Return the textures of a canvas: name -> tone int8 (px, px). Their darkest parts show in the sketch."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[0:px, 0:px] / px

    def noise(across: int, down: int, gain: int, hard: int) -> np.ndarray:
        grid = Image.fromarray(rng.uniform(-hard, hard, (down, across)).astype(np.float32))
        return gain / 100 * np.clip(grid.resize((px, px), Image.Resampling.BICUBIC), -1, 1)

    row, board, knit = y / 0.024, x / 0.034, y / 0.05
    odd, bed = np.floor(row) % 2 / 2, row % 1 < 0.22
    spot = np.hypot((x / 0.06 + np.floor(knit) % 2 / 2) % 1 - 0.5, knit % 1 - 0.5)
    tones = {name: noise(*map(int, cells)) for name, cells in NOISE.items()} | {
        "brick": np.where(((x / 0.05 + odd) % 1 < 0.12) | bed, -0.9, 0.1),
        "slate": np.where(bed, -0.9, 0.1),
        "tile": np.where(np.abs(row % 1 - 1 + 0.8 * ((board + odd) % 1 * 2 - 1) ** 2) < 0.16, -0.9, 0.1),
        "plank": np.where(board % 1 < 0.12, -0.9, 0.2 * np.sin(71 * np.floor(board))),
        "birch": np.where(noise(16, 60, 100, 1) > 0.6, -1.1, 0),
        "stripe": np.where(np.abs(knit % 1 - 0.5) > 0.44, -0.9, 0.4 * np.sign(knit % 1 - 0.5)),
        "dots": np.where(np.abs(spot - 0.26) < 0.04, -0.9, np.where(spot < 0.25, 1, -0.1)),
    }
    grain = noise(180, 180, 14, 1) + noise(14, 14, 10, 1)
    return {name: np.int8(100 * np.clip(tone + grain, -1.2, 1.2)) for name, tone in tones.items()}


@lru_cache(maxsize=64)
def pattern(px: int, name: str) -> Image.Image:
    """Return where a texture shows in the sketch: a mask (px, px)."""
    return Image.fromarray((textures(px)[name] < -66).view(np.uint8) * np.uint8(255))


@cache
def parts(drawing: str) -> list[tuple[str, float, str, list[np.ndarray]]]:
    """Return the parts of one of DRAWINGS: material, lightness, style, and its outlines (M, 2); a drawing has none."""
    found = []
    for part in " ".join(DRAWINGS[drawing]).split(";"):
        head, *numbers = part.split()
        name, _, lift = head.lstrip("~*|^").partition(":")
        p, oval = np.array(numbers, float) / 100, len(numbers) == 4 and "^" not in head
        if numbers:
            p = ellipse(*p, 0.22 * ("*" in head)) if oval else p.reshape(-1, 2)
            p = np.concatenate([p, p[::-1] * (-1, 1)]) if "^" in head else p
            p = curve(p) if "~" in head else p
        style = "round" if oval or "~" in head else "side"
        sides = [p * (side, 1) for side in ((1, -1) if "|" in head else (1,))] if numbers else []
        found.append((name, float(lift or 0) / 100, style, sides))
    return found


class Canvas:
    """A scene's colour and sketch layer; coordinates in image sides, y up, relative to the current place."""

    def __init__(self, index: int, size: int) -> None:
        self.rng = rng = np.random.default_rng((SEED, index))
        self.px = size * (3 if size < 200 else 2)
        self.colour, self.sketch = Image.new("RGB", (self.px,) * 2), Image.new("L", (self.px,) * 2, 255)
        self.pen, self.nib = ImageDraw.Draw(self.colour), ImageDraw.Draw(self.sketch)
        self.time = rng.choice(list(LIGHTS), p=[int(light[8]) / 100 for light in LIGHTS.values()])
        self.season = rng.choice(list(SEASONS), p=[0.5, 0.18, 0.2, 0.12])
        light = np.array(LIGHTS[self.time][:9], float) / 100
        self.gain, self.drift = light[6] * rng.uniform(0.82, 1.1), rng.normal(0, (0, 0.005, 0.005))
        self.vivid, (self.top, self.low) = light[7], light[:6].reshape(2, 3) + rng.normal(0, 0.01, (2, 3))
        self.sun = (rng.uniform(0.12, 0.88), rng.uniform(0.74, 0.9) - 0.2 * (self.time == "sunset"))
        self.lit = 1 if self.sun[0] > 0.5 else -1
        self.place()

    def place(self, x: float = 0, y: float = 0, s: float = 1, depth: float = 0, turn: float = 1) -> None:
        """Set origin (x, y), scale s, haze (depth in 0..1) and mirroring (turn -1) of what is drawn next."""
        self.origin, self.scale, self.s, self.depth = np.array([x, 1 - y]), np.array([s * turn, -s]), s, depth

    def xy(self, points: np.ndarray) -> np.ndarray:
        """Convert points (M, 2) to pixels of the canvas."""
        return (points * self.scale + self.origin) * self.px

    def tone(self, name: str, dl: float = 0) -> np.ndarray:
        """Return a material's OKLab (3,) under the light of the scene; lamp and moon keep their lightness."""
        gain = (1 if name in ("lamp", "moon") else self.gain, self.vivid, self.vivid)
        lab = np.array(MATERIALS[name][:3], float) / 100 * gain + self.drift + self.low * (0, 0.12, 0.12)
        return lab + self.depth * (self.low - lab) + (dl, 0, 0)

    def fill(self, points: np.ndarray, name: str, dl: float = 0, style: str = "side") -> None:
        """Fill a polygon (M, 2) with a shaded, textured material, and draw its outline on the sketch."""
        shift, xy = self.rng.random(2), self.xy(points)
        low, high = xy.min(0).tolist(), (xy.max(0) + 1).tolist()
        x0, y0 = (int(min(max(edge, 0), self.px - 1)) for edge in low)
        x1, y1 = (int(min(max(math.ceil(edge), 1), self.px)) for edge in high)
        box, w, h = (x0, y0, x1, y1), x1 - x0, y1 - y0
        mask = Image.new("L", (w, h))
        ImageDraw.Draw(mask).polygon((xy - (x0, y0)).ravel().tolist(), fill=255)
        u = (2 * (np.arange(x0, x1, dtype=np.float32) - low[0]) / (high[0] - low[0]) - 1)[None]
        v = (1 - 2 * (np.arange(y0, y1, dtype=np.float32) - low[1]) / (high[1] - low[1]))[:, None]
        ox, oy = int(shift[0] * (self.px - w)), int(shift[1] * (self.px - h))
        texture = MATERIALS[name][3]
        tone = textures(self.px)[texture][oy : oy + h, ox : ox + w]
        base, right, up, bulge = map(int, SHADES[style])
        field = (base + right * self.lit * u + bulge * u * u) + (up * v + bulge * v * v)
        field += tone * np.float32(1 - 0.7 * self.depth)
        mid, fog = self.tone(name, dl), 0.55 * self.depth * (style == "land")
        span = np.array([(0.15 * self.gain + 0.03) * (1 - 0.5 * self.depth), 0, 0.02])
        ends = (self.top, self.low) if style == "sky" else (mid - span + fog * (self.low - mid), mid + span)
        image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
        palette = np.arange(256)[:, None] * ((ends[1] - ends[0]) / 255) + ends[0]
        image.putpalette(to_srgb(palette).tobytes())
        self.colour.paste(image.convert("RGB"), box, mask)
        self.sketch.paste(255, box, mask)
        shown = pattern(self.px, texture).crop((ox, oy, ox + w, oy + h))
        self.sketch.paste(PALE_INK, box, ImageChops.darker(mask, shown))
        nib = max(1, round(0.003 * (1 - 0.5 * self.depth) * self.px))
        for slant in (0, 0.6 * nib):  # like a broad nib: the width of a line depends on its direction
            line = (np.concatenate([xy, xy[:1]]) + slant).ravel().tolist()
            self.nib.line(line, fill=INK, width=nib, joint="curve")

    def dots(self, at: np.ndarray, r: np.ndarray | float, name: str, dl: float = 0, ink: float = 0) -> None:
        """Draw ellipses of five tones at points (M, 2); a share `ink` of them are arcs in the sketch."""
        tones = to_srgb(self.tone(name, dl) + np.linspace(-0.12, 0.14, 5)[:, None] * (1, 0, 0.1)).tolist()
        boxes = np.sort(np.stack([self.xy(at - r), self.xy(at + r)], 1), 1).reshape(-1, 4).tolist()
        for box, k, p in zip(boxes, *self.rng.random((2, len(boxes))), strict=True):
            self.pen.ellipse(box, fill=tuple(tones[int(5 * k)]))
            if p < ink:
                self.nib.arc(box, 200, 340, fill=INK, width=max(1, round(0.003 * self.px)))

    def blend(self, x: float, y: float, rx: float, ry: float, name: str, strength: float) -> None:
        """Blend a soft ellipse into the colour layer alone: a glow, a shadow, red cheeks."""
        w, h = (max(1, round(2 * r * self.s * self.px)) for r in (rx, ry))
        mask = RADIAL.resize((w, h), Image.Resampling.BILINEAR)
        mask = mask.point((strength * np.arange(255, -1, -1) ** 2 // 255).astype(np.uint8).tolist())
        x0, y0 = np.int64(self.xy(np.array([x, y])) - (w / 2, h / 2)).tolist()
        self.colour.paste(tuple(to_srgb(self.tone(name)).tolist()), (x0, y0, x0 + w, y0 + h), mask)

    def figure(self, drawing: str, dl: float, swap: dict[str, str]) -> None:
        """Draw one of DRAWINGS at the current place, with some of its materials replaced."""
        for name, lift, style, outlines in parts(drawing):
            name = swap.get(name, name)
            if not outlines:
                self.figure(name, dl, swap)
            for outline in outlines:
                self.fill(outline, name, dl + lift, style)

    def sky(self) -> None:
        """Draw the sky: sun or moon, stars, clouds, balloons and birds."""
        disc, glow, cloud, _ = LIGHTS[self.time][9:]
        self.fill(np.array([(-0.1, -0.1), (1.1, -0.1), (1.1, 1.1), (-0.1, 1.1)]), "cloud", 0, "sky")
        self.blend(*self.sun, 0.6, 0.5, glow, 0.6)
        self.dots(self.rng.uniform((0, 0.5), 1, (45 * (self.time == "night"), 2)), 0.003, "moon")
        self.place(*self.sun, self.rng.uniform(0.045, 0.075))
        self.figure("disc", 0, {"lamp": disc})
        for x, y, w in self.rng.uniform((0, 0.6, 0.07), (1, 0.92, 0.16), (self.rng.integers(2, 5), 3)):
            self.place(x, y, w, 0.05, self.rng.choice([-1, 1]))
            self.figure("cloud" if self.time in ("day", "cloudy") else "streak", 0, {"cloud": cloud})
        for what in self.rng.choice(["balloon", "birds"], self.rng.poisson(0.7)):
            self.put(what, *self.rng.uniform((0.1, 0.6, 0.2), (0.9, 0.85, 0.4)), 0.1)

    def land(self, y: float, rough: float, name: str, depth: float) -> np.ndarray:
        """Draw hills, mountains, or water that reflects what is behind it; returns the upper edge (97, 2)."""
        edge, x = round((1 - y) * self.px), np.linspace(-0.05, 1.05, 97)
        turns = x[:, None] * self.rng.uniform(0.8, 1.7) * (1, 2.3, 5.1, 11) + self.rng.random(4)
        waves = 2 * np.abs(2 * (turns % 1) - 1) - 1 if name == "rock" else np.sin(2 * np.pi * turns)
        crest = np.stack([x, y + rough * waves @ (0.5 if name == "rock" else 0.3) ** np.arange(4)], 1)
        foot = [(1.05, max(y - 0.5, -0.05)), (-0.05, max(y - 0.5, -0.05))]
        self.place(depth=depth)
        self.fill(np.concatenate([crest, foot]), name, self.rng.normal(0, 0.04), "land")
        if name == "water":
            above = ImageOps.flip(self.colour.crop((0, 2 * edge - self.px, self.px, edge)))
            self.colour.paste(above, (0, edge), Image.new("L", above.size, 110))
            across, near = self.rng.random((2, 70))
            spots = np.stack([across, y * (1 - near**0.7) - 0.02], 1)
            self.dots(spots, (0.01, 0.002) + near[:, None] * (0.03, 0.004), name, 0.1, 0.6)
        return crest

    def put(self, what: str, x: float, y: float, s: float, depth: float) -> None:
        """Draw one of DRAWINGS with its shadow, its foot at (x, y), s tall or wide."""
        dl, size = self.rng.normal(0, 0.05), s * float(SIZES.get(what, ["100"])[0]) / 100
        self.place(x, y, size, depth, -self.lit * self.rng.uniform(0.85, 1.15))
        self.blend(0.2, 0, 0.6, 0.1, "dark", 0.5 * (1 - depth) * (what not in ("balloon", "birds", "bust")))
        hair, light = self.rng.choice(["ginger", "bark", "thatch", "dark"]), LIGHTS[self.time][12]
        wall, wear = self.rng.choice(list(HOUSES)), self.rng.choice(list(WEARS))
        swap = {"wall": wall, "roof": HOUSES[wall][0], "door": HOUSES[wall][1], "style": hair, "hair": hair}
        swap |= {"wear": wear, "collar": WEARS[wear][0], "skin": self.rng.choice(["skin", "skin", "umber"])}
        swap |= {"frost": "needle", "crown": SEASONS[self.season][1], "light": light}
        swap |= {"roof": "snow", "frost": "snow", "fringe": "cap"} if self.season == "winter" else {}
        self.figure(what, dl, swap)
        if what in ("broad", "birch", "poplar"):
            *dab, number = np.array(SEASONS[self.season][3:], float) / 1000
            spots = self.rng.normal((0, 0.66), 0.13, (int(1000 * number * s) + 4, 2))
            self.dots(spots * (1 - 0.5 * (what == "poplar"), 1), np.array(dab), swap["crown"], dl + 0.05, 0.6)
        if what == "house" and light == "lamp":
            self.blend(0.7, 0.2, 0.6, 0.5, "lamp", 0.45)
        for x in (-0.12, 0.12) if what == "bust" else ():
            self.blend(x, 0.41, 0.07, 0.06, "poppy", 0.5)


def draw(index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return colour and sketch of a scene, each (size, size, 3) uint8; it is the same scene at any size."""
    c = Canvas(index, size)
    c.sky()
    flowers = ["conifer"] if c.season == "winter" else c.rng.choice(["poppy", "tulip", "bell", "gold"], 2)
    kinds = {"tree": c.rng.choice(["broad", "conifer", "poplar", "birch"], 2), "flower": flowers}
    for row in " ".join(FAMILIES[c.rng.choice(list(FAMILIES))]).split(";"):
        name, things = row.split()[0], row.split()[6:]
        y, rough, depth, number, s = np.array(row.split()[1:6], float) / 100
        name = c.rng.choice(SEASONS[c.season][:3:2], p=[0.85, 0.15]) if name == "land" else name
        crest = c.land(y + c.rng.uniform(-0.04, 0.04), rough, name, depth)
        n = 1 if "bust" in things else c.rng.poisson(number)
        for x in (np.arange(n) + c.rng.uniform(0.25, 0.75, n)) / max(n, 1):
            what = c.rng.choice(things)
            foot = np.interp(x, *crest.T) - (c.rng.uniform(0.06, 0.16) if name == "water" else 0.015)
            c.put(c.rng.choice(kinds.get(what, [what])), x, foot, s * c.rng.uniform(0.8, 1.25), depth)
    colour, ink = (np.array(layer.reduce(c.px // size)) for layer in (c.colour, c.sketch))
    return colour, np.repeat(ink[..., None], 3, 2)


def draw_all(indices: Sequence[int], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `draw` of each index, in order; a process on each core draws, as threads would wait for each other.

    Raises ChildProcessError where one of them fails; it has told why on stderr.
    """
    count = min(os.cpu_count() or 1, len(indices))
    command = [sys.executable, "-m", __spec__.name, str(size)]
    with ExitStack() as stack:
        pipes = []
        for k in range(count):
            process = Popen([*command, *map(str, indices[k::count])], stdout=PIPE, cwd=Path(__file__).parents[1])
            assert stack.enter_context(process).stdout
            pipes.append(process.stdout)
        for i, index in enumerate(indices):
            data = pipes[i % count].read(6 * size * size)
            if len(data) < 6 * size * size:
                raise ChildProcessError(f"scene {index} was not drawn: its process has ended")
            yield tuple(np.frombuffer(data, np.uint8).reshape(2, size, size, 3))


if __name__ == "__main__":  # a process of draw_all
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads has ended
    side, *numbers = map(int, sys.argv[1:])
    for number in numbers:
        sys.stdout.buffer.write(np.stack(draw(number, side)).tobytes())
