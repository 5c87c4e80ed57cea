"""Handwritten digits with TensorFlow and Keras, on one host or several: the same model however many there are.

    optml train --image tensorflow --entry-point train.py --source-dir scripts/examples/tensorflow
    optml train --image tensorflow --entry-point train.py --source-dir scripts/examples/tensorflow \
        --instance-count 2 --distribution multi_worker_mirrored_strategy

A loop of its own rather than model.fit(), which Keras 3 has for one host only (keras-team/keras issue 20585).
"""

import argparse
import hashlib
import os
import signal
from pathlib import Path

import numpy
import tensorflow as tf
from sklearn.datasets import load_digits

TRAINING_ROWS = 1440  # of 1797; the others test


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=48, help="of all hosts together")
    parser.add_argument("--lr", type=float, default=0.05)
    options, _ = parser.parse_known_args()  # the SDK's estimator sends --model_dir besides

    # Joins the other hosts: it must come before anything else of TensorFlow.
    is_cluster = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_cluster else tf.distribute.get_strategy()
    # It has taken SIGTERM for itself, and a job that is stopped would stand until it is killed.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tf.keras.utils.set_random_seed(0)

    digits = load_digits()
    images, labels = (digits.images / 16.0)[..., None].astype("float32"), digits.target
    with strategy.scope():
        model = network()
        optimizer = tf.keras.optimizers.SGD(options.lr, momentum=0.9)
        optimizer.build(model.trainable_variables)
    step = training_step(strategy, model, optimizer, options.batch_size)
    draw = numpy.random.default_rng(0)
    order = numpy.concatenate([draw.permutation(TRAINING_ROWS) for _ in range(options.epochs)])
    data = iter(batches(strategy, images[order], labels[order], options.batch_size))
    print(f"replicas={strategy.num_replicas_in_sync}", flush=True)
    for epoch in range(1, options.epochs + 1):
        losses = [float(step(*next(data))) for _ in range(TRAINING_ROWS // options.batch_size)]
        said = model(images[TRAINING_ROWS:]).numpy().argmax(axis=1)
        accuracy = (said == labels[TRAINING_ROWS:]).mean()
        print(f"epoch={epoch} loss={numpy.mean(losses):.4f} accuracy={accuracy:.4f}", flush=True)

    weights = numpy.concatenate([each.ravel() for each in model.get_weights()])
    print(f"weights={hashlib.sha256(weights.tobytes()).hexdigest()[:16]}")
    if not is_cluster or strategy.cluster_resolver.task_id == 0:
        model.save(Path(os.environ["SM_MODEL_DIR"]) / "digits.keras")


def network() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )


def batches(
    strategy: tf.distribute.Strategy, images: numpy.ndarray, labels: numpy.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Every host takes its own rows of the same order, so that together they train on the batches that one host would."""

    def of_this_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices((images, labels))
        mine = rows.shard(context.num_input_pipelines, context.input_pipeline_id)
        return mine.batch(context.get_per_replica_batch_size(batch_size))

    return strategy.distribute_datasets_from_function(of_this_host)


def training_step(strategy, model, optimizer, batch_size):
    """A function of one batch's images and labels (of each replica its part) that trains on it and gives the loss of all."""

    def train(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            scores = model(images, training=True)
            each = tf.keras.losses.sparse_categorical_crossentropy(labels, scores, from_logits=True)
            loss = tf.reduce_sum(each) / batch_size
        # Keras's optimizers sum the gradients of all replicas by themselves.
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("sum", strategy.run(train, args=(images, labels)), axis=None)

    return step


if __name__ == "__main__":
    main()
