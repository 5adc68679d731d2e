"""What `python -m data_prep.filter` is made of; datatrove is imported only while a pipeline runs."""
