# Seconds, for CI: shows that everything runs; its figures mean nothing.
context=192
patch=96
target=(--d_model 32 --n_heads 4 --d_ff 64 --e_layers 2)
target_training=(--train_epochs 1 --batch_size 256 --learning_rate 1e-3 --lradj constant)
draft=(--draft_stochastic --draft_scale_d_model 0.5 --draft_scale_n_heads 0.5 --draft_scale_d_ff 0.5
       --draft_scale_e_layers 0.5)
draft_training=(--train_epochs 2 --batch_size 256 --learning_rate 3e-3 --lradj constant
                --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
testing=(--batch_size 256)
horizons="96 192"
sampled_windows=20  # of test_probabilistic.sh
