"""Looks objects up in OpenNGC, through the package `pyongc`, and says their facts in plain terms.

Source: OpenNGC by Mattia Verga (CC BY-SA 4.0).
"""

import dataclasses
import math
import re

LICENSE = "CC BY-SA 4.0"

_KINDS = {
    "Galaxy": "galaxy",
    "Galaxy Pair": "pair of galaxies",
    "Galaxy Triplet": "triplet of galaxies",
    "Group of galaxies": "group of galaxies",
    "Globular Cluster": "globular cluster",
    "Open Cluster": "open cluster",
    "Association of stars": "association of stars",
    "Star cluster + Nebula": "star cluster with nebulosity",
    "Planetary Nebula": "planetary nebula",
    "Supernova remnant": "supernova remnant",
    "HII Ionized region": "emission nebula",
    "Emission Nebula": "emission nebula",
    "Reflection Nebula": "reflection nebula",
    "Dark Nebula": "dark nebula",
    "Nebula": "nebula",
}
"""OpenNGC's types that a picture can show; single stars, doubtful and unknown entries are none."""

_GALAXIES = (
    ("SAB", "weakly barred spiral galaxy"),
    ("SB", "barred spiral galaxy"),
    ("S0", "lenticular galaxy"),
    ("E-S0", "lenticular galaxy"),
    ("S?", "galaxy"),
    ("S", "spiral galaxy"),
    ("E", "elliptical galaxy"),
    ("IB", "barred irregular galaxy"),
    ("I", "irregular galaxy"),
)
"""What a Hubble type begins with, the longer beginnings first."""

_CONSTELLATIONS: dict[str, str] = dict(
    re.findall(
        r"(\w+):([^,]+)",
        "And:Andromeda, Ant:Antlia, Aps:Apus, Aqr:Aquarius, Aql:Aquila, Ara:Ara, Ari:Aries, "
        "Aur:Auriga, Boo:Boötes, Cae:Caelum, Cam:Camelopardalis, Cnc:Cancer, CVn:Canes Venatici, "
        "CMa:Canis Major, CMi:Canis Minor, Cap:Capricornus, Car:Carina, Cas:Cassiopeia, "
        "Cen:Centaurus, Cep:Cepheus, Cet:Cetus, Cha:Chamaeleon, Cir:Circinus, Col:Columba, "
        "Com:Coma Berenices, CrA:Corona Australis, CrB:Corona Borealis, Crv:Corvus, Crt:Crater, "
        "Cru:Crux, Cyg:Cygnus, Del:Delphinus, Dor:Dorado, Dra:Draco, Equ:Equuleus, Eri:Eridanus, "
        "For:Fornax, Gem:Gemini, Gru:Grus, Her:Hercules, Hor:Horologium, Hya:Hydra, Hyi:Hydrus, "
        "Ind:Indus, Lac:Lacerta, Leo:Leo, LMi:Leo Minor, Lep:Lepus, Lib:Libra, Lup:Lupus, "
        "Lyn:Lynx, Lyr:Lyra, Men:Mensa, Mic:Microscopium, Mon:Monoceros, Mus:Musca, Nor:Norma, "
        "Oct:Octans, Oph:Ophiuchus, Ori:Orion, Pav:Pavo, Peg:Pegasus, Per:Perseus, Phe:Phoenix, "
        "Pic:Pictor, Psc:Pisces, PsA:Piscis Austrinus, Pup:Puppis, Pyx:Pyxis, Ret:Reticulum, "
        "Sge:Sagitta, Sgr:Sagittarius, Sco:Scorpius, Scl:Sculptor, Sct:Scutum, Se1:Serpens, "
        "Se2:Serpens, Sex:Sextans, Tau:Taurus, Tel:Telescopium, Tri:Triangulum, TrA:Triangulum "
        "Australe, Tuc:Tucana, UMa:Ursa Major, UMi:Ursa Minor, Vel:Vela, Vir:Virgo, Vol:Volans,"
        "Vul:Vulpecula",
    )
)
"""By OpenNGC's abbreviations, which halve Serpens."""

_NAME_ENDINGS = ("Nebula", "Galaxy", "Galaxies", "Cluster")

_WITH_ARTICLE = ("Cat's Eye Nebula",)
"""Names that look like those of a person's nebula and are not."""

_NOT_NAMES = {"IC0434": ("Flame Nebula", "Orion B")}
"""Names that OpenNGC gives to the wrong object: the Flame Nebula is NGC 2024, beside IC 434."""


@dataclasses.dataclass(frozen=True)
class SkyObject:
    """What OpenNGC says of one object; what it does not say is empty or None."""

    key: str
    """OpenNGC's own name, the same for all of an object's designations."""
    designation: str
    """As asked, `NGC 6720`, or the Messier number, `M57`."""
    also: str
    """Another designation, or empty."""
    common_name: str
    kind: str
    """With a galaxy's shape: `barred spiral galaxy`."""
    hubble: str
    constellation: str
    size_arcmin: tuple[float, ...]
    """None, one or two diameters, the longer first."""
    magnitude: float | None
    """Visual."""
    velocity: int | None
    """Radial, in km/s, positive when it recedes; galaxies only."""
    right_ascension: float
    """Degrees."""
    declination: float
    """Degrees."""


def look_up(catalogue: str, number: int) -> SkyObject | None:
    """The object, `("M", 57)` or `("NGC", 6720)`; None where OpenNGC has none that is to be seen.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from pyongc.exceptions import UnknownIdentifier
        from pyongc.ongc import Dso
    except ImportError:
        raise ValueError("OpenNGC is not installed: pip install pyongc") from None
    try:
        found = Dso(f"{catalogue}{number}")
    except UnknownIdentifier:
        return None
    if found.type not in _KINDS or found.rad_coords is None:
        return None
    return _describe(found, catalogue, number)


def _describe(found, catalogue: str, number: int) -> SkyObject:
    messier, _, _, common_names, _ = found.identifiers
    asked = f"{catalogue}{number}" if catalogue == "M" else f"{catalogue} {number}"
    own = re.sub(r"^(NGC|IC)0*(\d+)$", r"\1 \2", found.name)
    designation = f"M{int(messier[1:])}" if messier else asked
    right_ascension, declination = (math.degrees(float(angle)) for angle in found.rad_coords)
    hubble = found.hubble or ""
    return SkyObject(
        key=found.name,
        designation=designation,
        also=own if own != designation and " " in own else "",
        common_name=_common_name(found.name, found.type, common_names or []),
        kind=_kind(found.type, hubble),
        hubble="" if "?" in hubble else hubble,
        constellation=_CONSTELLATIONS[found.constellation],
        size_arcmin=tuple(float(side) for side in found.dimensions[:2] if side),
        magnitude=found.magnitudes[1],
        velocity=found.radvel if found.type == "Galaxy" else None,
        right_ascension=right_ascension,
        declination=declination,
    )


def _kind(open_ngc_type: str, hubble: str) -> str:
    kind = _KINDS[open_ngc_type]
    if kind != "galaxy":
        return kind
    return next((shape for start, shape in _GALAXIES if hubble.startswith(start)), kind)


def _common_name(key: str, open_ngc_type: str, names: list[str]) -> str:
    """The best of an object's names, as a sentence needs it: `the Ring Nebula`, `Centaurus A`."""
    names = [name for name in names if name not in _NOT_NAMES.get(key, ())]
    names = [name.removeprefix("the ").replace(" nebula", " Nebula") for name in names]
    usable = [name for name in names if not _abbreviated(name)]
    plain = [name for name in usable if name.endswith(_NAME_ENDINGS)]
    if not usable:
        return ""
    name = (plain or usable)[0]
    if " " not in name[:2]:  # h Persei is another than H Persei
        name = name[0].upper() + name[1:]
    if re.search(r"'s | ([A-Z]|Centauri)$", name) and name not in _WITH_ARTICLE:
        return name
    of_several = name.endswith("Galaxies") and open_ngc_type == "Galaxy"
    return f"one of the {name}" if of_several else f"the {name}"


def _abbreviated(name: str) -> bool:
    """Whether a name is a catalogue's shorthand: `lam Cen Nebula`, `47 Tuc Cluster`."""
    return any(word in _CONSTELLATIONS or word.isdigit() for word in name.split())
