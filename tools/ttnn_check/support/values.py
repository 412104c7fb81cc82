"""From JSON to TT-NN values. The names and types of an operation's arguments are read from TT-NN's own signatures."""

import json
import re

from support.operations import RequestError, needs, only_keys


def split_top_level(text, separator=","):
    """Split at separators that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]


def signatures(doc):
    """Each `name(arg: type = default, ...) -> ...` line of a nanobind docstring as {arg: (type, has_default)}."""
    result = []
    for line in (doc or "").split("\n"):
        match = re.match(r"\w+\((.*)\) -> ", line.strip())
        if not match:
            continue
        arguments = {}
        for part in split_top_level(match.group(1)):
            part = part.strip()
            if not part or part in ("*", "/", "self"):
                continue
            name, _, rest = part.partition(":")
            kind, equals, _ = rest.partition("=")
            arguments[name.strip()] = (kind.strip(), bool(equals))
        result.append(arguments)
    return result


MEMORY_CONFIG_KEYS = {
    "memory_layout",
    "buffer_type",
    "shard_spec",
    "nd_shard_spec",
    "created_with_nd_shard_spec",
    "per_core_allocation",
}


class Values:
    """Builds TT-NN values for one open mesh device."""

    def __init__(self, ttnn, device):
        self.ttnn, self.device = ttnn, device
        self.grid = device.compute_with_storage_grid_size()

    def enum(self, owner, value, where):
        members = {m.name.upper(): m for m in owner.__members__.values()} if hasattr(owner, "__members__") else {}
        if isinstance(value, bool):
            raise RequestError(f"{where}: expected one of {', '.join(m.name for m in members.values())}")
        if isinstance(value, int):
            for member in members.values():
                if int(member.value) == value:
                    return member
        elif isinstance(value, str) and value.upper() in members:
            return members[value.upper()]
        raise RequestError(f"{where}: {value!r} is not one of {', '.join(m.name for m in members.values())}")

    def coord(self, value, where):
        if isinstance(value, dict) and set(value) == {"x", "y"}:
            value = [value["x"], value["y"]]
        if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
            raise RequestError(f"{where}: expected a core as [x, y]")
        return self.ttnn.CoreCoord(*value)

    def grid_of(self, value, where):
        """A core range set: [[[x0, y0], [x1, y1]], ...], {"cores": n} (row by row) or "dram_workers"."""
        ttnn = self.ttnn
        if value == "dram_workers":
            cores = self.device.get_optimal_dram_bank_to_logical_worker_assignment(ttnn.NOC.NOC_0)
            return ttnn.CoreRangeSet([ttnn.CoreRange(c, c) for c in cores])
        if isinstance(value, dict):
            only_keys(value, {"cores"}, where)
            return ttnn.num_cores_to_corerangeset(value["cores"], self.grid, row_wise=True)
        if not isinstance(value, list):
            raise RequestError(f"{where}: expected a list of core ranges")
        ranges = []
        for item in value:
            if isinstance(item, dict):
                only_keys(item, {"start", "end"}, where)
                item = [item["start"], item["end"]]
            if not isinstance(item, list) or len(item) != 2:
                raise RequestError(f"{where}: expected a core range as [[x0, y0], [x1, y1]]")
            ranges.append(ttnn.CoreRange(self.coord(item[0], where), self.coord(item[1], where)))
        return ttnn.CoreRangeSet(ranges)

    def memory_config(self, value, where):
        ttnn = self.ttnn
        if isinstance(value, str):
            name = value.upper()
            fixed = {"DRAM": ("INTERLEAVED", "DRAM"), "L1": ("INTERLEAVED", "L1")}
            for layout in ("WIDTH_SHARDED", "HEIGHT_SHARDED", "BLOCK_SHARDED"):
                fixed[f"L1_{layout}"] = (layout, "L1")
            if name not in fixed:
                raise RequestError(
                    f"{where}: unknown memory config {value!r}; known: {', '.join(fixed)} or an object"
                )
            layout, buffer = fixed[name]
            return ttnn.MemoryConfig(getattr(ttnn.TensorMemoryLayout, layout), getattr(ttnn.BufferType, buffer))
        only_keys(value, MEMORY_CONFIG_KEYS, where)
        if value.get("per_core_allocation"):
            raise RequestError(f"{where}: per_core_allocation is not supported by this checker")
        layout = self.enum(
            ttnn.TensorMemoryLayout, value.get("memory_layout", "INTERLEAVED"), f"{where}.memory_layout"
        )
        buffer = self.enum(ttnn.BufferType, value.get("buffer_type", "DRAM"), f"{where}.buffer_type")
        nd, spec = value.get("nd_shard_spec"), value.get("shard_spec")
        if nd is not None and spec is None:
            here = f"{where}.nd_shard_spec"
            only_keys(nd, {"shard_shape", "grid", "orientation", "shard_distribution_strategy"}, here)
            needs(nd, ("shard_shape", "grid"), here)
            strategy = nd.get("shard_distribution_strategy", "ROUND_ROBIN_1D")
            nd = ttnn.NdShardSpec(
                ttnn.Shape(nd["shard_shape"]),
                self.grid_of(nd["grid"], here),
                orientation=self.enum(ttnn.ShardOrientation, nd.get("orientation", "ROW_MAJOR"), here),
                shard_distribution_strategy=self.enum(ttnn.ShardDistributionStrategy, strategy, here),
            )
            return ttnn.MemoryConfig(buffer, nd)
        if spec is not None:
            here = f"{where}.shard_spec"
            only_keys(spec, {"grid", "shape", "orientation"}, here)
            needs(spec, ("grid", "shape"), here)
            orientation = self.enum(ttnn.ShardOrientation, spec.get("orientation", "ROW_MAJOR"), here)
            spec = ttnn.ShardSpec(self.grid_of(spec["grid"], here), spec["shape"], orientation)
        return ttnn.MemoryConfig(layout, buffer, spec)

    def unary(self, value, where):
        ttnn = self.ttnn
        if isinstance(value, str):
            value = {"op": value}
        only_keys(value, {"op", "params"}, where)
        needs(value, ("op",), where)
        kind = self.enum(ttnn.UnaryOpType, value["op"], where)
        return ttnn.UnaryWithParam(kind, *value.get("params", []))

    def structure(self, cls, value, where):
        """Call a configuration class with the fields of an object, checking names and types."""
        known = {}
        for signature in signatures(cls.__init__.__doc__):
            known.update(signature)
        fields = {}
        for key, item in value.items():
            if key not in known:
                raise RequestError(
                    f"{where}: {cls.__name__} has no field {key!r}; it has: {', '.join(sorted(known))}"
                )
            fields[key] = self.convert(known[key][0], item, f"{where}.{key}")
        missing = [k for k, (_, has_default) in known.items() if not has_default and k not in fields]
        if missing:
            raise RequestError(f"{where}: {cls.__name__} needs {', '.join(missing)}")
        return cls(**fields)

    def semaphores(self, count):
        ttnn = self.ttnn
        cores = ttnn.CoreRangeSet(
            [ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(self.grid.x - 1, self.grid.y - 1))]
        )
        return [ttnn.create_global_semaphore(self.device, cores, 0) for _ in range(count)]

    def convert(self, kind, value, where):
        """Convert a JSON value for an argument whose nanobind type is `kind`."""
        ttnn = self.ttnn
        if value is None:
            if "None" in kind:
                return None
            raise RequestError(f"{where}: null is not allowed ({kind})")
        if "Tensor]" in kind or re.search(r"tensor\.Tensor\b", kind):
            raise RequestError(f'{where}: this argument is a tensor; put it under inputs or weights with "arg"')
        if "ComputeKernelConfig" in kind:
            only_keys(value, self.compute_kernel_fields(), where)
            fields = {
                k: self.convert(self.compute_kernel_fields()[k][0], v, f"{where}.{k}") for k, v in value.items()
            }
            return ttnn.init_device_compute_kernel_config(self.device.arch(), **fields)
        if "ProgramConfig" in kind:
            if not isinstance(value, dict) or "type" not in value:
                raise RequestError(f'{where}: expected an object with a "type"')
            allowed = re.findall(r"(\w+ProgramConfig)\b", kind)
            if value["type"] not in allowed:
                raise RequestError(f"{where}: type {value['type']!r} is not one of {', '.join(allowed)}")
            if not hasattr(ttnn, value["type"]):
                raise RequestError(f"{where}: TT-NN does not offer {value['type']} to Python")
            fields = {k: v for k, v in value.items() if k != "type"}
            return self.structure(getattr(ttnn, value["type"]), fields, where)
        if "MemoryConfig" in kind:
            return self.memory_config(value, where)
        if "UnaryWithParam" in kind:
            if "Sequence" in kind:
                if not isinstance(value, list):
                    raise RequestError(f"{where}: expected a list of activations")
                return [self.unary(item, where) for item in value]
            return self.unary(value, where)
        if "GlobalSemaphoreArg" in kind or "global_semaphore" in kind:
            if value is True and "Sequence" not in kind:
                return self.semaphores(1)[0]
            if type(value) is int and value > 0:
                return self.semaphores(value)
            raise RequestError(f"{where}: expected a number of semaphores (or true for a single one)")
        if "Set[" in kind and "MeshCoordinate" in kind:
            return {ttnn.MeshCoordinate(item) for item in value}
        if "MeshCoordinate" in kind:
            return ttnn.MeshCoordinate(value)
        if "CoreRangeSet" in kind:
            return self.grid_of(value, where)
        if "CoreCoord" in kind:
            return self.coord(value, where)
        if "CoreGrid" in kind:
            only_keys(value, {"x", "y"}, where)
            needs(value, ("x", "y"), where)
            return ttnn.CoreGrid(x=value["x"], y=value["y"])
        if "SubDeviceId" in kind or "Pipe" in kind or "circular_buffer" in kind:
            raise RequestError(f"{where}: arguments of type {kind} are not supported by this checker")
        if "tensor.Tile" in kind:
            return ttnn.Tile(value)
        for name, owner in (
            ("tensor.DataType", ttnn.DataType),
            ("tensor.Layout", ttnn.Layout),
            ("ccl.Topology", ttnn.Topology),
            ("MathFidelity", ttnn.MathFidelity),
            ("TensorMemoryLayout", ttnn.TensorMemoryLayout),
            ("ShardOrientation", ttnn.ShardOrientation),
        ):
            if name in kind:
                return self.enum(owner, value, where)
        for member in kind.split(" | "):
            owner = self.lookup(member)
            if owner is not None and hasattr(owner, "__members__"):
                return self.enum(owner, value, where)
        if "Shape" in kind and isinstance(value, list):
            return ttnn.Shape(value)
        plain = {part.strip() for part in kind.replace("collections.abc.", "").split("|")}
        if isinstance(value, bool):
            if "bool" in plain:
                return value
        elif isinstance(value, int):
            if "int" in plain or "float" in plain:
                return value
        elif isinstance(value, float):
            if "float" in plain:
                return value
        elif isinstance(value, str):
            if "str" in plain:
                return value
        elif isinstance(value, list) and any(part.startswith("Sequence[") for part in plain):
            return value
        raise RequestError(f"{where}: {json.dumps(value)[:60]} does not fit the type {kind}")

    def lookup(self, dotted):
        """An enumeration named by a nanobind type such as ttnn._ttnn.operations.ccl.Topology."""
        owner = self.ttnn
        for part in dotted.strip().replace("::", ".").split(".")[1:]:
            owner = getattr(owner, part, None)
        return owner if owner is not self.ttnn else None

    def compute_kernel_fields(self):
        known = {}
        for signature in signatures(self.ttnn.init_device_compute_kernel_config.__doc__):
            known.update(signature)
        return {k: v for k, v in known.items() if k not in ("arch", "device_kernel_config")}
