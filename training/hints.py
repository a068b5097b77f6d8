"""What the flags of Lightning, Keras, timm and Ultralytics are called here, or why there is no such flag."""

_OTHER_NAMES = {
    "epochs": "max_epochs num_epochs n_epochs nb_epoch",
    "lr": "learning_rate lr0 base_lr init_lr max_lr",
    "weight_decay": "wd decay l2",
    "batch_size": "bs batch train_batch_size",
    "network": "model arch architecture",
    "optimizer": "opt optim",
    "schedule": "sched scheduler lr_scheduler cos_lr",
    "resume": "ckpt_path checkpoint weights resume_from_checkpoint initial_checkpoint",
    "accelerator": "gpus gpu device cuda",
    "precision": "amp half fp16 bf16 mixed_precision dtype",
    "num_nodes": "nodes",
    "data_dir": "data data_path data_root root",
    "log_dir": "default_root_dir output output_dir save_dir logdir project",
    "val_size": "validation_split val_split val",
    "flip": "hflip fliplr horizontal_flip",
    "label_smoothing": "smoothing",
    "seed": "random_seed random_state",
    "quiet": "verbose enable_progress_bar",
    "pictures": "plots",
    "tag": "name experiment run_name exp_name",
    "find_lr": "auto_lr_find",
    "there is no early stopping: every run trains all its epochs, and its best epoch is tested": (
        "patience early_stopping early_stopping_patience min_delta"
    ),
    "there are no workers: whole batches are made in memory": "num_workers workers n_workers pin_memory pin_mem",
    "the onecycle schedule has a warm-up, the first quarter of the run": "warmup warmup_epochs warmup_steps warmup_lr",
    "gradients are not clipped": "gradient_clip_val clip_grad grad_clip",
    "gradients are not accumulated; --batch_size may be large": "accumulate_grad_batches grad_accum_steps",
    "all images are 32 x 32": "imgsz img_size image_size input_size",
    "no network of this project has dropout; one of your own may": "dropout drop drop_rate",
    "augmentation is --crop, --flip, --cutout and --random_corruption": "augment auto_augment aa mixup cutmix",
}
HINTS = {name: hint for hint, names in _OTHER_NAMES.items() for name in names.split()}
