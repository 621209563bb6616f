"""The Ethos-U family: accelerators, and the system configurations and memory modes that Vela has for each.

Names and figures are those of Vela's own `Arm/vela.ini` (ethos-u-vela 5.2.0).
"""

from collections.abc import Mapping

__all__ = ["AUTO", "CONFIGS", "MEMORY_MODES", "SYSTEM_CONFIGS", "conflict", "family", "resolve"]

AUTO = "auto"  # the family's first

_MACS = {"ethos-u85": (256, 128, 512, 1024, 2048), "ethos-u65": (256, 512), "ethos-u55": (128, 32, 64, 256)}
_SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Ethos_U55_Deep_Embedded"),
    "ethos-u65": (
        "Ethos_U65_High_End",
        "Ethos_U65_Mid_End",
        "Ethos_U65_Client_Server",
        "Ethos_U65_Embedded",
    ),
    "ethos-u85": (
        "Ethos_U85_SYS_DRAM_Mid",
        "Ethos_U85_SYS_DRAM_Low",
        "Ethos_U85_SYS_DRAM_High",
        "Ethos_U85_SYS_Flash_High",
        "Ethos_U85_SYS_Flash_Low",
    ),
}
_WITH_FLASH = {*_SYSTEMS["ethos-u55"], "Ethos_U65_Embedded", "Ethos_U85_SYS_Flash_High", "Ethos_U85_SYS_Flash_Low"}
_DEDICATED = ("Dedicated_Sram", "Dedicated_Sram_256KB", "Dedicated_Sram_384KB", "Dedicated_Sram_512KB")

CONFIGS = tuple(f"{name}-{macs}" for name, each in _MACS.items() for macs in each)
SYSTEM_CONFIGS = (AUTO, *(system for each in _SYSTEMS.values() for system in each))
MEMORY_MODES = (AUTO, *_DEDICATED, "Shared_Sram", "Sram_Only")


def family(config: str) -> str:
    """`ethos-u55` of `ethos-u55-128`."""
    return config.rpartition("-")[0]


def resolve(options: Mapping[str, str]) -> tuple[str, str, str]:
    """Config, system configuration and memory mode, with what `auto` stands for."""
    config, system, memory = (options[name] for name in ("config", "system_config", "memory_mode"))
    system = _SYSTEMS[family(config)][0] if system == AUTO else system
    if memory == AUTO:
        memory = "Shared_Sram" if system in _WITH_FLASH else "Dedicated_Sram"
    return config, system, memory


def conflict(options: Mapping[str, str]) -> str:
    """Why a configuration, a system configuration and a memory mode do not go together; empty where they do."""
    config, system, memory = resolve(options)
    own = _SYSTEMS[family(config)]
    if system not in own:
        return f"{system} is of another family than {config}, which has {', '.join(own)}"
    if system in _WITH_FLASH and memory in _DEDICATED:
        return f"the second memory of {system} is flash, which holds no activations (Vela's arena_mem_area)"
    return ""
