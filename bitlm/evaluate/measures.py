"""The ROUGE measures: names of the ``rouge-score`` package, in the order shown, with their titles."""

MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
# Those that the article reports. A terminal has room for these.
MAIN_MEASURES = ("rouge1", "rouge2", "rougeL")
