# A target pretrained on 48 series of five files, each series by itself, and a 0.5x draft. 24 minutes for both on one CPU
# core. An epoch is a twentieth of the training windows, evenly spaced.
. scripts/settings/etth1_causal.sh
data_files="ETT-small/ETTh1.csv ETT-small/ETTh2.csv ETT-small/ETTm1.csv weather/weather.csv
            electricity/electricity_first6.csv"
dataset_class=UnivariateDatasetBenchmark
target=(--d_model 256 --n_heads 8 --d_ff 1024 --e_layers 4 --norm_mode causal)
target_training=(--dropout 0.2 --train_epochs 4 --batch_size 448 --learning_rate 1e-3 --cosine --tmax 4 --ema 0.98
                 --subset_rand_ratio 0.05 --val_every 45 --val_windows 60 --patience 6 --test_windows 40)
draft=(--draft_stochastic --draft_scale_d_model 0.5 --draft_scale_n_heads 0.5 --draft_scale_d_ff 0.5
       --draft_scale_e_layers 0.5 --draft_patches 7)
# Noise in units of each window: a fixed amount of it drowns windows that hardly move, such as hours without rain.
draft_training=(--dropout 0.0 --train_epochs 12 --batch_size 448 --learning_rate 1.5e-3 --cosine --tmax 12
                --patience 12 --subset_rand_ratio 0.05 --val_windows 60 --test_windows 40 --draft_rollout 8
                --draft_rollout_context 1 --draft_teacher_noise 0.05 --draft_noise_unit window --draft_nll_var_reg 0.01)
testing=(--batch_size 64 --test_windows 40)
# Fine-tuning on one file (scripts/adaptation).
adapting=(--dropout 0.1 --train_epochs 3 --batch_size 64 --learning_rate 1e-4 --cosine --tmax 3 --val_windows 100
          --test_windows 40)
