# The models of the pool on six clients of ECL alone, to compare with.
. scripts/settings/pool.sh
data_files= data_file=electricity/electricity_first6.csv
