"""Templates: a directory that says what an experiment is, what it measures and what may be changed.

Owns the reading and checking of `template.yaml`, the directories of other systems that labd can run, the hash
over a template's files, and the copy of them that a task's runs really use. Runs nothing.
"""

from labd.template.files import (
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATE_FILES,
    copy_files,
    hash_files,
    snapshot,
)
from labd.template.form import FILE_NAME, MIN_CONFIRM_SEEDS
from labd.template.loading import (
    SHIPPED,
    check_template,
    is_template,
    list_templates,
    load_template,
    missing_requirements,
    read_template,
    refuse_researcher,
    seed_ideas,
    with_data,
)
from labd.template.model import (
    PLACEHOLDERS,
    Better,
    DataPlace,
    Metric,
    Param,
    ParamSpec,
    Record,
    Scale,
    SeedIdea,
    Stage,
    Style,
    Template,
    fill_command,
    fill_evaluate,
    scaled,
    with_metric,
)

__all__ = [
    "FILE_NAME",
    "MAX_TEMPLATE_BYTES",
    "MAX_TEMPLATE_FILES",
    "MIN_CONFIRM_SEEDS",
    "PLACEHOLDERS",
    "SHIPPED",
    "Better",
    "DataPlace",
    "Metric",
    "Param",
    "ParamSpec",
    "Record",
    "Scale",
    "SeedIdea",
    "Stage",
    "Style",
    "Template",
    "check_template",
    "copy_files",
    "fill_command",
    "fill_evaluate",
    "hash_files",
    "is_template",
    "list_templates",
    "load_template",
    "missing_requirements",
    "read_template",
    "refuse_researcher",
    "scaled",
    "seed_ideas",
    "snapshot",
    "with_data",
    "with_metric",
]
