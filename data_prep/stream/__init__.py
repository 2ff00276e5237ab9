"""Sources as a stream of documents, without a store."""
