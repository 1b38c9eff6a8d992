# OpenLTM's pretraining on UTSD: the target has the shape of the published one (67 M parameters), and its steps if
# PROCESSES=8 share them. For GPUs. An epoch is a hundredth of the training windows, evenly spaced.
data_files=UTSD-full-npy
dataset_class=Utsd_Npy
context=2880
patch=96
target=(--d_model 1024 --n_heads 8 --d_ff 2048 --e_layers 8)
target_training=(--train_epochs 10 --batch_size 2048 --learning_rate 5e-5 --cosine --tmax 10 --valid_last
                 --subset_rand_ratio 0.01 --val_windows 20 --test_windows 20)
draft=(--draft_stochastic --draft_scale_d_model 0.25 --draft_scale_n_heads 0.25 --draft_scale_d_ff 0.25
       --draft_scale_e_layers 0.25)
draft_training=(--train_epochs 4 --batch_size 256 --learning_rate 1e-3 --cosine --tmax 4 --subset_rand_ratio 0.01
                --val_windows 20 --test_windows 20 --draft_rollout 8 --draft_teacher_noise 0.05
                --draft_noise_unit window --draft_nll_var_reg 0.01)
testing=(--batch_size 64 --test_windows 20)
# Fine-tuning on one file (scripts/adaptation), as in OpenLTM's scripts.
adapting=(--train_epochs 10 --batch_size 2048 --learning_rate 5e-6 --cosine --tmax 10)
horizons="96 192 336 720"
