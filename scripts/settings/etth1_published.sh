# The published configuration (STRIDE): context 1536, one layer of d_model 1024, 0.25x stochastic draft, H = 336.
context=1536
patch=96
target=(--d_model 1024 --n_heads 8 --d_ff 2048 --e_layers 1)
target_training=(--train_epochs 10 --batch_size 64 --learning_rate 1e-4 --lradj type1 --patience 3)
draft=(--draft_stochastic --draft_scale_d_model 0.25 --draft_scale_n_heads 0.25 --draft_scale_d_ff 0.25
       --draft_scale_e_layers 0.25)
draft_training=(--train_epochs 10 --batch_size 64 --learning_rate 5e-5 --cosine --tmax 10
                --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
testing=(--batch_size 64)
horizons="336"
