"""Files of a channel -> arrays. Errors name the file and the row, and say what to do.

How an algorithm reads a channel, whatever its format and input mode:

    from optml_algorithms.data.channel import batches, read
    from optml_algorithms.data.rows import require_feature_count, require_finite, require_labels

    rows = read(container.channels()["train"], formats=("recordio", "csv"))    # all of it, or None: an empty shard
    require_labels(rows)
    require_finite(rows)                                                       # where NaN does not mean missing
    rows.features    # float32: numpy array (rows, columns), or scipy.sparse.csr_matrix if rows.is_sparse
    rows.labels      # float32, shape (rows,); (rows, n) for n > 1 labels; None without
    rows.where(17)   # "/opt/ml/input/data/train/part-0.csv, row 18"

    for rows in batches(channel, formats=...):                                 # a few tens of MiB at a time: constant memory
        ...

`formats` says what the algorithm takes: csv, libsvm, parquet, recordio; the first is the default where ContentType is missing.
`label_sizes=range(0, 1)` reads data without labels. In Pipe mode `epoch` chooses the FIFO. Data is made with
`recordio_writer.write_recordio(file, features, labels)`.
"""
