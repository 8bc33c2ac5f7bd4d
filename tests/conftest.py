import fcntl
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tiny models gain nothing from threads

import pytest
from hypothesis import HealthCheck, settings

# torch, transformers and the zoo are imported where a worker needs them: with -n, the process that hands out tests needs none
import sinkgate as sg

# a busy machine is no failure; every run draws other examples
settings.register_profile("untimed", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


TESTS = Path(__file__).parent
#: What CI runs in its second step: folders below tests/, and single tests that start processes, take seconds, or vary one of the first step.
EXTENDED = ("attacks", "browser", "demo", "docs", "hosting", "load", "notebooks")
EXTENDED_TESTS = (
    "browser/test_page.py::test_a_page_that_hears_late",
    "browser/test_page.py::test_bad_questions",
    "browser/test_page.py::test_every_kind_of_picture",
    "browser/test_page.py::test_gates_as_files",
    "browser/test_page.py::test_layer_head_query",
    "browser/test_page.py::test_light_and_dark",
    "browser/test_page.py::test_presets_link",
    "browser/test_page.py::test_two_users",
    "cli/test_cli.py::test_a_group_that_no_image_has_is_named",
    "cli/test_cli.py::test_a_killed_sweep_goes_on_and_two_processes_equal_one",
    "cli/test_cli.py::test_a_mistake_ends_the_process_with_2",
    "cli/test_cli.py::test_gates_are_trained_stacked_examined_and_asked",
    "cli/test_cli.py::test_gates_of_another_model",
    "cli/test_cli.py::test_gates_that_jobs_trained_apart",
    "data/test_scene_facts.py::test_facts_are_what_the_pixels_show",
    "images/test_images.py::test_a_phones_photograph_is_made_smaller_and_stands_upright[MPO]",
    "images/test_images.py::test_a_phones_photograph_is_made_smaller_and_stands_upright[TIFF]",
    "images/test_images.py::test_a_phones_photograph_is_made_smaller_and_stands_upright[WEBP]",
    "methods/test_criterion.py::test_studies",
    "methods/test_runtime.py::test_shipped_gates_and_other_criteria",
    "models/test_chat.py::test_options_are_chosen_alike_by_sweeps_and_scores[sentencepiece-",
    "models/test_processor_table.py::test_what_is_",
    "models/test_session.py::test_a_compiled_model_is_gated_and_recorded",
    "plots/test_style.py::test_images_are_files_of_their_kind",
    "reference/test_check_gating.py::test_the_command_says_equal_or_different",
    "sinks/test_states.py::test_verdicts_are_those_on_whole_states",
    "studies/test_claims.py::test_reasoning_that_leans_by_chance",
    "studies/test_claims.py::test_sweep",
    "studies/test_probes_study.py::test_both_studies_in_their_folders",
    "studies/test_race.py::test_a_killed_race",
    "studies/test_race.py::test_the_best_of_the_exact_map",
    "test_gpu_script.py::",
    "test_project.py::test_import_and_help_leave_out_what_they_do_not_need[import sinkgate as sg",
    "test_project.py::test_the_models_of_the_page_are_those_of_the_tests",
    "test_project.py::test_the_project_reads_plainly",
    "training/test_gate_training.py::test_a_killed_run_goes_on_bit_for_bit",
    "training/test_gate_training.py::test_bfloat16_comes_near",
    "training/test_gate_training.py::test_checkpointing_changes_nothing",
    "training/test_gate_training.py::test_early_stopping_takes_the_best_weights_back",
    "training/test_gate_training.py::test_the_limit_of_checkpoints_spares_the_best_and_folders_of_users",
    "training/test_gate_training.py::test_two_processes_equal_one",
    "training/test_stacking.py::test_the_stack_is_what_greedy_choice_by_hand_gives",
    "widgets/test_in_jupyterlab.py::",
)
#: What a schedule runs: tests that take long and vary what the tests above hold in one form.
NIGHTLY_TESTS = (
    "attention/test_kernels.py::test_compiled_flex_attention_is_gated",
    "methods/test_runtime.py::test_other_models",
    "models/test_session.py::test_a_compiled_model_is_gated_and_recorded[siglip]",
    "reference/test_check_gating.py::test_gates_are_what_hooks_on_the_key_projection_do[idefics3]",
    "reference/test_check_gating.py::test_gates_are_what_hooks_on_the_key_projection_do[internvl]",
    "reference/test_check_gating.py::test_gates_are_what_hooks_on_the_key_projection_do[qwen3_vl]",
    "reference/test_check_gating.py::test_gates_are_what_hooks_on_the_key_projection_do[siglip]",
    "studies/test_run.py::test_ten_kills_at_random_moments_change_nothing",
    "test_gpu_script.py::test_started_as_users_do_it",
    "widgets/test_in_jupyterlab.py::test_thirty_two_layers",
)
#: Of the zoo's architectures, those of every contributor's run: each adapter, and each way from patches to tokens. Others are nightly.
COMMON = (
    "llava",
    "llava_next",
    "qwen2_5_vl",
    "qwen3_vl",
    "llama4",
    "mllama",
    "gemma3",
    "idefics3",
    "internvl",
    "instructblip",
    "lfm2_vl",
)
#: Of all other architectures CI runs these.
OF_EVERY_ARCHITECTURE = (
    "models/test_architectures.py::test_a_prompt_knows_its_visual_tokens",
    "models/test_architectures.py::test_gated_logits_and_rows_equal_attention_written_from_scratch",
)
MAIN_PATH = "browser/test_page.py"
#: Folders and files that take longest: begun first, so that no worker is left with one of them at the end.
LONGEST = ("notebooks", "widgets", "docs", "test_gpu_script.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from zoo import ZOO

    rare_names = ZOO.keys() - set(COMMON)
    for item in items:
        path = item.path.relative_to(TESTS)
        test = f"{path.as_posix()}::{item.name}"
        call = getattr(item, "callspec", None)
        rare = any(isinstance(value, str) and value in rare_names for value in call.params.values()) if call else False
        if test.startswith(NIGHTLY_TESTS) or (rare and not test.startswith(OF_EVERY_ARCHITECTURE)):
            item.add_marker("nightly")
        elif rare or (path.parts[0] in EXTENDED and path.as_posix() != MAIN_PATH) or test.startswith(EXTENDED_TESTS):
            item.add_marker("extended")
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in LONGEST)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing of extended files and folders where all of tests/ is collected without the extended tests."""
    whole = [config.invocation_params.dir / argument for argument in config.args] == [TESTS]
    path, main = collection_path.relative_to(TESTS), Path(MAIN_PATH)
    if not whole or config.option.markexpr != "not extended and not nightly" or path in (main, *main.parents):
        return None
    return True if path.parts[0] in EXTENDED or f"{path.as_posix()}::" in EXTENDED_TESTS else None


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    os.environ["SINKGATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)  # tiny models: threads cost more than they bring


@pytest.fixture(scope="session")
def demo() -> sg.VLM:
    return sg.load("demo")


@pytest.fixture(scope="session", params=["clip", "siglip"])
def tiny(request) -> sg.VLM:
    from tiny import tiny_llava

    return sg.load(tiny_llava(request.param))


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The documentation, built once for all workers, warnings as errors."""
    root, base = Path(__file__).parents[1], tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, command = (
        base / "site",
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/mkdocs.yml"],
    )
    with (base / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
            command += ["-d", str(base / "site-unchecked")]
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            (base / "site-unchecked").rename(folder)
    return folder
