"""Who may import whom: downward only, so that any room can be read without the ones above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# From below to above. A module may import from lower lines, and from those to its left in its own line.
LAYERS = """
everest.errors everest.backbones everest.tokenizer_sizes everest.pixels everest.official_keys
everest.files everest.randomness everest.cpu
everest.reports everest.launch everest.stopping everest.health everest.hub
everest.tokens everest.importance everest.masks everest.learned_importance everest.selection
everest.frame_selection everest.targets
everest.config.setting_types everest.config.strict_yaml everest.config.recipe_files
everest.config.tokenizer_settings everest.config.settings everest.config.tokenizer_checks
everest.config.recipe_layers everest.config.recipe_errors everest.config.recipe_checks everest.config.recipe
everest.data.remote everest.data.contents everest.data.folders everest.data.packet_index
everest.data.exactness everest.data.video_stream
everest.data.counted_files everest.data.video_file
everest.data.backends everest.data.video everest.data.cache everest.data.frames
everest.data.list_files everest.data.labels everest.data.absences everest.data.shards everest.data.lists
everest.data.list_writing everest.data.crops everest.data.transforms everest.data.named
everest.data.rand_augment everest.data.mixing everest.data.views everest.data.datasets everest.data.loading
everest.models.attention everest.models.block everest.models.embedding everest.models.positions
everest.models.vit
everest.models.mae everest.models.pooling everest.models.classifier
everest.models.fsq everest.models.tokenizer_blocks everest.models.token_scorer everest.models.tokenizer
everest.models.discriminator
everest.optim everest.sharding everest.checkpoint everest.running everest.run_folder everest.continuing
everest.runs everest.bad_videos everest.plan
everest.tracking everest.adversary everest.train_state
everest.devices everest.norms everest.token_targets everest.tokenizer_spec everest.token_index
everest.build
everest.profiling.counting everest.profiling.memory everest.plots everest.data_uri
everest.convert.pickles everest.convert.read everest.convert.families everest.convert.sizes
everest.convert.identify everest.convert.conversion
everest.load everest.export.graph everest.export.torch_file everest.export.onnx_file
everest.export.transformers_config everest.export.transformers_folder
everest.classes everest.clips everest.token_cache everest.mask_view everest.pictures everest.films
everest.mask_page
everest.encoding everest.inference everest.predictions everest.timeline everest.row_store everest.features
everest.mask_report everest.frame_view everest.frame_pictures
everest.saving everest.step_record everest.updating everest.training everest.assemble
everest.scores everest.scoring
everest.eval_report.confusion everest.eval_report.sweep everest.eval_report.drawing everest.eval_report.page
everest.eval_report.writing everest.evaluate
everest.probing.encoded_set everest.probing.shallow everest.probing.attentive everest.probing.probe
everest.pretrain everest.finetune
everest.tokenizer_clips everest.tokenizer_measures everest.tokenizer_report everest.tokenizer_pictures
everest.perceptual everest.tokenizer_loss everest.train_tokenizer
everest.profiling.profile everest.profiling.paper_tables
everest.profiling.choices everest.profiling.energy everest.profiling.measure everest.profiling.loading
everest.profiling.drawing
everest.moving_shapes everest.rendered_sets everest.demo_videos everest.event_videos
everest.notebook everest.mask_looks
everest.prepare.layouts.annotations everest.prepare.layouts.text_lists everest.prepare.layouts.json_lists
everest.prepare.layouts.csv_lists everest.prepare.layouts.table everest.prepare.layouts.folders
everest.prepare.matching everest.prepare.index everest.prepare.groups everest.prepare.split
everest.prepare.processes everest.prepare.damage everest.prepare.examine everest.prepare.journal
everest.prepare.spread
everest.prepare.sources everest.prepare.label_checks everest.prepare.duplicates everest.prepare.check
everest.prepare.clean everest.prepare.stats everest.prepare.contact_sheet
everest.prepare.output_folder everest.prepare.originals everest.prepare.shard_plan everest.prepare.shard
everest.prepare.encode_settings everest.prepare.encoding everest.prepare.encode everest.prepare.gain
everest.prepare.tokens
everest.demo_steps everest.demo everest.lvmae_demo
everest.doctor.finding everest.doctor.packages everest.doctor.devices everest.doctor.decoders
everest.doctor.system everest.doctor.examination
"""
ORDER = LAYERS.split()
PACKAGES = (
    *("everest", "everest.config", "everest.convert", "everest.data", "everest.models"),
    *("everest.prepare", "everest.prepare.layouts", "everest.probing", "everest.profiling"),
    *("everest.doctor", "everest.eval_report", "everest.export"),
)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "everest").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in PACKAGES:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of everest that a file imports, those for types only included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0].startswith("everest")}


def test_every_module_has_one_place():
    assert sorted(ORDER) == sorted(modules())


def test_imports_go_downward_only():
    wrong = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in imports(path)
        if used not in ORDER or ORDER.index(used) >= ORDER.index(name)
    ]
    assert wrong == []


def test_nothing_in_the_library_prints_or_reads_the_command_line():
    for name, path in modules().items():
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in calls, name


def test_importing_everest_imports_nothing_heavy():
    code = (
        "import everest, sys; print(sorted({'torch', 'numpy', 'pydantic', 'av', 'timm'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
