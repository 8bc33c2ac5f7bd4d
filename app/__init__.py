"""The Gradio app: ask a model, scale its sinks layer by layer, watch attention and answers change."""
