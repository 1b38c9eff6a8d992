# The pool without ETTh2 and weather, to test on files that it has not seen.
. scripts/settings/pool.sh
data_files="ETT-small/ETTh1.csv ETT-small/ETTm1.csv electricity/electricity_first6.csv"
unseen_files="ETT-small/ETTh2.csv weather/weather.csv"
