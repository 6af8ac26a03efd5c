"""The CLAIM 2024 checklist for a cohort report: answered from provenance, and open where nothing is known.

The items are stated completely, in our own words. The checklist: Tejani et al., "Checklist for Artificial
Intelligence in Medical Imaging (CLAIM): 2024 Update", Radiology: Artificial Intelligence 6(4), 2024.
"""

from __future__ import annotations

from collections.abc import Mapping

from lobule.reports.page import table, text

ITEMS: tuple[tuple[str, str], ...] = (
    (
        "Title and abstract",
        "Say in the title or the abstract that the study is about artificial intelligence, and name "
        "the kind of technology, such as deep learning.",
    ),
    (
        "Title and abstract",
        "Summarise the design, methods, results and conclusions of the study in a structured abstract.",
    ),
    (
        "Introduction",
        "Describe the scientific and clinical background, with the intended use of the approach and "
        "its role in care.",
    ),
    ("Introduction", "State the aims and objectives of the study, and its hypotheses."),
    ("Study design", "State whether the study is prospective or retrospective."),
    (
        "Study design",
        "State the goal of the study, such as building a model, exploring feasibility, or showing "
        "that it is not inferior.",
    ),
    ("Data", "Name the sources of the data, and say how they can be accessed."),
    (
        "Data",
        "State how, where and when eligible patients or examinations were identified, and why any "
        "were left out.",
    ),
    (
        "Data",
        "Describe how the data were processed before the model reads them, in enough detail to repeat it.",
    ),
    (
        "Data",
        "Describe how subsets of the data were chosen, if there are any, such as regions, views or slides.",
    ),
    ("Data", "Describe how the data were de-identified, and to which rules this conforms."),
    ("Data", "State how missing data were handled, such as leaving out cases or replacing values."),
    ("Data", "Describe how the images were acquired: devices, protocols and their parameters."),
    ("Reference standard", "Define the reference standard exactly enough that others can reproduce it."),
    (
        "Reference standard",
        "Give the reasons for choosing this reference standard, with its known weaknesses.",
    ),
    (
        "Reference standard",
        "Name the origin of the annotations: the people, their training and instructions, and the tools.",
    ),
    (
        "Reference standard",
        "Describe how the test set was annotated, and by whom, if this differs from the other data.",
    ),
    (
        "Reference standard",
        "State how much annotators differ from one another and from themselves, and how differences "
        "were resolved.",
    ),
    (
        "Data partitions",
        "State how the data were divided into training, tuning and test sets, with the share of each.",
    ),
    (
        "Data partitions",
        "State the level at which the sets have nothing in common, such as patient, examination or site.",
    ),
    ("Testing data", "State the intended sample size, and how it was determined."),
    (
        "Model",
        "Describe the model completely: its inputs, its outputs, and all layers and connections "
        "between them.",
    ),
    ("Model", "Name the software, frameworks and packages, with their versions."),
    (
        "Model",
        "State how the parameters of the model were initialised, such as at random or from another training.",
    ),
    (
        "Training",
        "Describe the training: augmentation, settings and how they were chosen, and the number of models.",
    ),
    ("Training", "State how the final model was selected."),
    ("Training", "Describe how several models were combined, if they were."),
    (
        "Evaluation",
        "Define the metrics of the performance of the model, and say which is the most important.",
    ),
    ("Evaluation", "State how significance and uncertainty were measured, such as with intervals or tests."),
    (
        "Evaluation",
        "Analyse how robust the results are, or how sensitive to assumptions and first settings.",
    ),
    (
        "Evaluation",
        "Describe the methods that explain or interpret the output of the model, and how these were "
        "validated.",
    ),
    ("Evaluation", "Describe the evaluation on data from the same source as the training data."),
    (
        "Evaluation",
        "Describe the test on data from other sources. Without such a test, say so as a limitation.",
    ),
    ("Evaluation", "For a clinical trial, state its registration."),
    (
        "Results",
        "State how many patients or examinations were included and excluded at each step, with the "
        "reasons, for example in a flow chart.",
    ),
    (
        "Results",
        "Report the demographic and clinical characteristics of the cases in each partition and "
        "from each source.",
    ),
    (
        "Results",
        "Report the performance of the final model on each partition, with statistical uncertainty, "
        "and compare it with the reference standard.",
    ),
    (
        "Results",
        "Report estimates of diagnostic performance and their precision, such as 95 % intervals, on "
        "internal and external test data.",
    ),
    ("Results", "Analyse the cases in which the result was wrong, and look for what they have in common."),
    (
        "Discussion",
        "Name the limitations of the study: possible bias, uncertainty, and how far the results "
        "apply elsewhere.",
    ),
    (
        "Discussion",
        "State what follows for practice, with the intended use and the clinical role of the approach.",
    ),
    ("Other information", "Refer to the complete study protocol, or to further technical details."),
    (
        "Other information",
        "State whether the software, the trained model and the data are available, and where.",
    ),
    (
        "Other information",
        "Name the sources of funding and other support, the role of the funders, and whether the "
        "authors were independent of them.",
    ),
)
"""Section and requirement of the 44 items, in order."""

OPEN = "Open: not known to Lobule; the study team must answer this."


def claim_table(answers: Mapping[int, str]) -> str:
    """Build the table of all items.

    Args:
        answers: Plain text by the number of the item, counted from 1; all other items are shown as open.
    """
    rows: list[list[str]] = []
    section = ""
    for index, (item_section, item) in enumerate(ITEMS, 1):
        if item_section != section:
            section = item_section
            rows.append([text(section)])
        answer = answers.get(index)
        cell = text(answer) if answer else f"<span class=note>{text(OPEN)}</span>"
        rows.append([str(index), text(item), cell])
    answered = sum(1 for index in range(1, len(ITEMS) + 1) if answers.get(index))
    heading = f"<p>{answered} of {len(ITEMS)} items are answered from the files; the others are open.</p>"
    return heading + table(["", "what to report", "answer"], rows, (0,), ("3rem", "50%", "auto"))
