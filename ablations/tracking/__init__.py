"""The only package that imports MLflow."""

import os

# MLflow reads them when it is imported.
for _name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
    os.environ.setdefault(_name, "true")
