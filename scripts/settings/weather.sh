# The models of the pool on weather alone, to compare with.
. scripts/settings/pool.sh
data_files= data_file=weather/weather.csv
target_training+=(--subset_rand_ratio 0.1)  # epochs as long as those of the pool need more of its windows
