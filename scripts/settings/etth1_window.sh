# Window normalisation, as in OpenLTM: minutes on two CPU cores. The scripts of the published recipe use it.
context=672
patch=96
target=(--d_model 256 --n_heads 8 --d_ff 1024 --e_layers 2)
target_training=(--dropout 0.3 --train_epochs 3 --batch_size 64 --learning_rate 5e-4 --lradj constant --ema 0.98
                 --val_every 30 --patience 2)
draft=(--draft_stochastic --draft_scale_d_model 0.25 --draft_scale_n_heads 0.25 --draft_scale_d_ff 0.25
       --draft_scale_e_layers 0.25)
draft_training=(--dropout 0.0 --train_epochs 3 --batch_size 32 --learning_rate 1e-3 --cosine --tmax 3
                --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
testing=(--batch_size 64)
horizons="96 192 336 720"
