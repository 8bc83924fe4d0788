# Run by Snakemake in the new environment, in the repository's root.
set -e
python -m pip install --disable-pip-version-check -r envs/core.txt
python -m pip install --disable-pip-version-check --no-deps -r envs/data.txt --editable .
