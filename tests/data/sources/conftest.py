from fake_hub import hub, on_hub  # noqa: F401
